"""One sandbox: a microVM that runs, is paused, or is stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

from arrakis_rpc.converter import unstructure
from arrakis_rpc.daemon_api import SnapshotInfo, VmInfo, VmList
from arrakis_rpc.errors import ArrakisError, FileOperationError
from arrakis_rpc.guest_api import Pty

from ._client import Client, without_none
from .files import Files
from .process import Completed, Process

_STATE_METHODS = {
    "stopped": "vm.stop",
    "paused": "vm.pause",
    "running": "vm.resume",
    "resume": "vm.resume",
}


class Sandbox:
    """A handle on the VM called ``name``. Making one asks the daemon nothing.

    Every method raises `NotFoundError` when there is no such VM, `InvalidStateError` when
    it is not in a state named in the method's description, and `ConnectionLostError` when
    the daemon is not there. As a context manager it destroys the VM at the end.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def __repr__(self) -> str:
        return f"<Sandbox {self.name!r}>"

    # State

    def info(self) -> dict[str, Any]:
        """Describe the VM, in any state.

        ``name``, ``status`` (CREATED, RUNNING, PAUSED or STOPPED), ``ip`` with its prefix
        (``10.20.1.2/24``), ``tap_device_name``, and ``port_forwards`` if there are any: a
        list of ``host_port``, ``guest_port`` (both text) and ``description``. Then
        ``image``, ``vcpus``, ``memory_mib``, ``disk_mib``, ``created`` (Unix time),
        ``snapshot`` (what it was restored from), ``pid`` of its VMM, and ``failure``
        (``reason``, ``console``) of a VM that stopped by itself.
        """
        info: VmInfo = self._client.call("vm.info", {"name": self.name})
        fields: dict[str, Any] = unstructure(info)
        if not fields["port_forwards"]:
            del fields["port_forwards"]
        return fields

    def update_state(self, status: str) -> None:
        """Bring the VM into a state: ``stopped``, ``paused``, or ``running`` (or ``resume``).

        The same as `stop`, `pause` and `resume`. Raises `ValueError` for another word.
        """
        method = _STATE_METHODS.get(status)
        if method is None:
            raise ValueError("Status must be 'stopped', 'paused' or 'running'")
        self._client.call(method, {"name": self.name})

    def pause(self) -> None:
        """Halt the vCPUs of a RUNNING VM; it keeps its memory. It is then PAUSED."""
        self.update_state("paused")

    def resume(self) -> None:
        """Let a PAUSED VM go on. It is then RUNNING."""
        self.update_state("running")

    def stop(self) -> None:
        """Shut a RUNNING or PAUSED VM down. It is then STOPPED."""
        self.update_state("stopped")

    def destroy(self) -> None:
        """End the VM, in any state, and free all that it used. Its snapshots stay."""
        self._client.call("vm.destroy", {"name": self.name})

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.destroy()
        except ArrakisError:
            # Not instead of the reason why the block ended.
            if error is None:
                raise

    # Time travel

    def snapshot(self, snapshot_id: str = "", *, label: str = "") -> str:
        """Keep a RUNNING or PAUSED VM as it is now; give the id to restore it by.

        An id is up to 63 lower-case letters, digits and ``-``; without one the daemon
        chooses. A label is up to 200 characters for people to read. Raises
        `AlreadyExistsError`, and `ExhaustedError` when the disk is full.
        """
        params = without_none(vm=self.name, id=snapshot_id or None, label=label or None)
        info: SnapshotInfo = self._client.call("snapshot.create", params)
        return info.id

    def fork(self, count: int = 1, names: Sequence[str] | None = None) -> list[Sandbox]:
        """Make ``count`` (1 to 64) siblings of a RUNNING or PAUSED VM, all of them or none.

        They have its processes, memory and files, and an identity of their own: name,
        address, host name, random state. Without ``names`` the daemon chooses them.
        Raises `AlreadyExistsError` for a name that is taken, `ExhaustedError` when the
        host's memory or addresses do not suffice.
        """
        names = None if names is None else list(names)
        params = without_none(name=self.name, count=count, names=names)
        siblings: VmList = self._client.call("vm.fork", params)
        return [Sandbox(self._client, vm.name) for vm in siblings.vms]

    # Commands, in a RUNNING VM

    def run_cmd(self, cmd: str, blocking: bool = True) -> dict[str, str]:
        """Run ``cmd`` with ``bash -c`` in /tmp/server_files; see `run` for more than that.

        Gives ``output``, stdout and stderr as they came (what is not UTF-8 is replaced),
        and ``error``: empty, or ``exit status N`` or ``signal: killed`` for a command that
        failed. Not ``blocking``, it only starts the command.
        """
        if not blocking:
            with self.exec(cmd, background=True) as process:
                process.wait()
            return {"output": f"Command '{cmd}' started in background", "error": ""}
        with self.exec(cmd, merge_output=True) as process:
            completed = process.wait()
        return {"output": completed.text, "error": "" if completed.ok else completed.status}

    def run(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | str | None = None,  # noqa: A002 -- its name in subprocess.run
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> Completed:
        """Run a command and wait for it: a text with ``bash -c``, a list as it is.

        ``env`` is added to the guest's own; ``cwd`` is /tmp/server_files by default.
        After ``timeout`` seconds the command is killed, and ``timed_out`` set. With
        ``check``, a command that failed raises `CommandFailedError`. All output is kept
        in memory; `exec` streams it. Raises `NotFoundError` for an unknown program or
        user, `GuestError` when the guest does not answer.
        """
        with self.exec(
            command, stdin=input is not None, cwd=cwd, env=env, user=user, timeout=timeout
        ) as process:
            completed = process.wait() if input is None else process.communicate(input)
        return completed.check() if check else completed

    def exec(
        self,
        command: str | Sequence[str],
        *,
        stdin: bool = False,
        pty: Pty | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout: float | None = None,
        merge_output: bool = False,
        background: bool = False,
    ) -> Process:
        """Start a command; give the running `Process`. Parameters and errors as in `run`.

        ``stdin`` opens its input, which is empty otherwise. ``pty`` gives it a terminal of
        that size. With ``merge_output`` or ``pty``, stderr comes within stdout. In the
        ``background`` it has no streams, its process ends as soon as it has started, and
        it goes on after that.
        """
        how = {"shell": command} if isinstance(command, str) else {"argv": list(command)}
        args = without_none(
            **how,
            stdin=stdin,
            pty=None if pty is None else unstructure(pty),
            cwd=cwd,
            env=dict(env or {}),
            user=user,
            timeout=timeout,
            merge_output=merge_output,
            background=background,
        )
        call = self._client.open("exec.run", {"vm": self.name, "args": args})
        return Process(call, stdin=stdin)

    # Files, in a RUNNING VM

    @cached_property
    def files(self) -> Files:
        """The files of a RUNNING VM."""
        return Files(self._client, self.name)

    def upload_files(self, files: Iterable[Mapping[str, str]]) -> None:
        """Write text files; each is a mapping with ``path`` and ``content``.

        A relative path is below /tmp/server_files; missing directories are made. Raises
        `FileOperationError` at the first that fails. `Files.write` takes bytes, too.
        """
        for file in files:
            self.files.write(file["path"], file["content"])

    def download_files(self, paths: Iterable[str]) -> list[dict[str, str]]:
        """Read text files; give for each ``path`` and ``content``, or ``path`` and ``error``.

        What is not UTF-8 is replaced; `Files.read` gives bytes.
        """
        return [self._download_file(path) for path in paths]

    def _download_file(self, path: str) -> dict[str, str]:
        try:
            content = self.files.read(path)
        except FileOperationError as error:
            return {"path": path, "error": str(error)}
        return {"path": path, "content": content.decode(errors="replace")}
