"""One sandbox: a microVM that runs, is paused, suspended or stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from arrakis_rpc.converter import unstructure
from arrakis_rpc.daemon_api import OnTimeout, OnUnresponsive, SnapshotInfo, VmInfo, VmList
from arrakis_rpc.errors import ArrakisError, FileOperationError
from arrakis_rpc.guest_api import Health, Pty

from ._client import Client, without_none
from .desktop import Desktop
from .files import Files
from .network import Ports, egress_params
from .process import Completed, Process

if TYPE_CHECKING:
    from .explore import Action, Exploration

_STATE_METHODS = {
    "stopped": "vm.stop",
    "paused": "vm.pause",
    "suspended": "vm.suspend",
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

        ``name``, ``status`` (CREATED, RUNNING, PAUSED, SUSPENDED or STOPPED), ``ip`` with
        its prefix (``10.20.1.2/24``), ``tap_device_name``, and ``port_forwards`` if there are
        any: a list of ``host_port``, ``guest_port`` (both text) and ``description``. Then
        ``egress`` (``mode``, ``allow``; see `set_egress`), ``image``, ``vcpus``,
        ``memory_mib``, ``disk_mib``, ``created`` (Unix time),
        ``snapshot`` (the last one on its way here), ``pid`` of its VMM, and ``failure``
        (``reason``, ``console``) of a VM that stopped by itself.
        """
        info: VmInfo = self._client.call("vm.info", {"name": self.name})
        fields: dict[str, Any] = unstructure(info)
        if not fields["port_forwards"]:
            del fields["port_forwards"]
        return fields

    def health(self) -> Health:
        """Ask the guest of a RUNNING VM how it is.

        ``booted`` (whether systemd has finished starting up), ``uptime`` in seconds,
        ``load`` over the last minute, ``memory_total`` and ``memory_available`` in bytes,
        ``processes``. Raises `GuestError` when the guest does not answer within 10 seconds.
        """
        health: Health = self._client.call("vm.health", {"name": self.name})
        return health

    def update_state(self, status: str) -> None:
        """Bring the VM into a state: ``stopped``, ``paused``, ``suspended``, or ``running``.

        The same as `stop`, `pause`, `suspend` and `resume`, which is another word for
        ``running``. Raises `ValueError` for any other.
        """
        method = _STATE_METHODS.get(status)
        if method is None:
            raise ValueError("Status must be 'stopped', 'paused', 'suspended' or 'running'")
        self._client.call(method, {"name": self.name})

    def pause(self) -> None:
        """Halt the vCPUs of a RUNNING VM; it keeps its memory. It is then PAUSED."""
        self.update_state("paused")

    def resume(self) -> None:
        """Let a PAUSED or SUSPENDED VM go on. It is then RUNNING.

        Raises `ExhaustedError` when the host's memory does not suffice for a SUSPENDED one,
        `IntegrityError` when what is stored of it is damaged, `UnsupportedError` when the
        hypervisor is not that of then. It stays SUSPENDED if that fails.
        """
        self.update_state("running")

    def suspend(self) -> None:
        """Keep a RUNNING or PAUSED VM on disk, and end its process. It is then SUSPENDED.

        `resume` brings it back: processes, memory and files are as they were, and it is the
        same machine. It takes no memory meanwhile, and survives the daemon. Commands and
        transfers that run are cut off; what was started in the background goes on later.
        Raises `ExhaustedError` when the disk is full; then it goes on as it was.
        """
        self.update_state("suspended")

    def stop(self) -> None:
        """Shut a RUNNING or PAUSED VM down. It is then STOPPED."""
        self.update_state("stopped")

    def set_limits(
        self,
        *,
        ttl: float | None = None,
        idle_timeout: float | None = None,
        on_timeout: OnTimeout | None = None,
        on_unresponsive: OnUnresponsive | None = None,
    ) -> None:
        """Change how long the VM may live, in any state. None leaves things as they are.

        After ``ttl`` seconds, counted from its start or from when it was last resumed from
        disk, or ``idle_timeout`` seconds in which nobody used it, it is suspended, stopped or
        destroyed: ``on_timeout`` is ``"suspend"``, ``"stop"`` or ``"destroy"``. 0 lifts a limit.
        Used it is by any call but `info`, `health`, this one and ``ports.list()``, as long as that
        lasts, and by connections to its ports at the host's loopback. `info` has the limits, and
        when they end it.

        A VM whose guest has not answered for a while has ``unresponsive_since`` in its `info`. By
        ``on_unresponsive`` it is then left as it is (``"leave"``), taken back to its last snapshot
        (``"restore"``; without one it is left), or destroyed (``"destroy"``).
        """
        limits = without_none(
            ttl=ttl,
            idle_timeout=idle_timeout,
            on_timeout=on_timeout,
            on_unresponsive=on_unresponsive,
        )
        self._client.call("vm.set_limits", {"name": self.name, "limits": limits})

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

    def rollback(self, snapshot_id: str) -> None:
        """Take a RUNNING or PAUSED VM back to a snapshot that it descends from; then it runs.

        Processes, memory and files are those of the snapshot; what came after it is lost,
        but for other snapshots. Name, address, forwarded ports, egress and SSH host key stay
        those of the VM. If it fails, the VM is as it was. Raises `NotFoundError` for a
        snapshot that is none of the VM's ancestors.
        """
        self._client.call("vm.rollback", {"name": self.name, "snapshot": snapshot_id})

    def explore(
        self,
        actions: Sequence[Action],
        score: Callable[..., float],
        *,
        keep: int = 1,
        workers: int = 8,
    ) -> Exploration:
        """Try each of 1 to 64 actions in a fork of its own, and go on as the best of them.

        An action is a command, as `run` takes it, or a function that is called with the
        fork. Then ``score`` is called with the fork, and with what the action gave if it
        takes two arguments: the higher the better, the first of equal ones wins. Up to
        ``workers`` threads do so at a time.

        The winner takes this VM's name, and this VM is destroyed: the handle stays good. The
        ``keep - 1`` next best stay under names of their own, all others are destroyed. The
        winner's address is its own, and so are its forwarded ports.

        A command that fails is no error: what it is worth, ``score`` decides. A branch
        whose action or score raises has no score, and its ``error`` tells why. When all
        have failed `ExplorationFailedError` is raised. Whatever is raised here, no fork
        is left and this VM is as it was; functions that still run are waited for.
        """
        from .explore import explore

        return explore(self, actions, score, keep, workers)

    def rename(self, name: str, *, replace: bool = False) -> None:
        """Give a RUNNING or PAUSED VM another name, and this handle with it.

        Address, ports and policy stay; the host name in the guest follows, in a paused one
        when it goes on. With ``replace``, a VM that has the name is destroyed for it, and at
        no moment does nobody have it. Raises `AlreadyExistsError`, and `GuestError` when the
        guest does not answer; then nothing has changed.
        """
        self._client.call("vm.rename", {"name": self.name, "to": name, "replace": replace})
        self.name = name
        for handle in ("files", "ports", "desktop"):  # they know the name, too
            self.__dict__.pop(handle, None)

    # Network

    @cached_property
    def ports(self) -> Ports:
        """The forwarded ports of a RUNNING or PAUSED VM."""
        return Ports(self._client, self.name)

    def set_egress(self, egress: str | Sequence[str]) -> None:
        """Change what a RUNNING or PAUSED VM may connect to; it holds from now on.

        ``"none"``: nothing. ``"internet"``: all but the host, other VMs, and private
        networks. A list of targets: of the internet, only those. A target is an IPv4
        address, a network (``93.184.0.0/16``) or a domain name (``*.example.com`` is all
        below it), each with a port or a range of ports after a colon, or without for all:
        ``["pypi.org:443", "93.184.0.0/16:80-90"]``; at most 256. An empty list is
        ``"none"``. Connections that are open and no longer allowed are cut. What lists of
        names can stop, and what not, is told in docs/network.md. `info` has what is in
        force. Raises `InvalidParamsError` for what is none of these, and `UnsupportedError`
        when the daemon has no network.
        """
        self._client.call("egress.set", {"vm": self.name, "egress": egress_params(egress)})

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

    # Desktop, in a RUNNING VM

    @cached_property
    def desktop(self) -> Desktop:
        """The desktop of a RUNNING VM: a picture of it, mouse and keyboard."""
        return Desktop(self._client, self.name)

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
