# ruff: noqa: PTH101, PTH103, PTH110, PTH112, PTH118
"""Starting a program: which file, as whom, where, with which environment.

``posix_spawn`` is used instead of `subprocess.Popen`: it costs half the interpreter's time,
never copies the agent's page tables, and a terminal opened by its file actions becomes the
controlling one of the new session. What it lacks is done around it: the working directory
is the agent's own for the moment (nothing else runs meanwhile), and another user's program
is started through ``setpriv``, which drops every privilege before it executes. Paths are
plain text, for `pathlib` costs.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import pwd
import signal
from collections.abc import Mapping

from attrs import define

from arrakis_rpc.errors import GuestError, NotFoundError
from arrakis_rpc.guest_api import ExecSpec

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Action = tuple[int, int, int] | tuple[int, int, str, int, int]

_ROOT = {
    "PATH": SYSTEM_PATH,
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
}
_log = logging.getLogger(__name__)

# The interpreter ignores these; programs expect the default.
_DEFAULT_SIGNALS = [signal.SIGPIPE, signal.SIGXFSZ]


@define
class Launch:
    """All that is known of a program before it runs."""

    program: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    owner: tuple[int, int] | None = None


class OomScore:
    """Lets the kernel kill what the agent starts before the agent, when memory is short.

    Children inherit the score at the moment they are made, so it is 0 for that moment: set
    afterwards, it would come too late for what a child starts at once.
    """

    def __init__(self) -> None:
        self._file = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        own = os.read(self._file, 16).strip()
        self._own = own if own != b"0" else None

    def make_ordinary(self) -> None:
        """Be as exposed as everyone else."""
        if self._own is not None:
            os.write(self._file, b"0")

    def restore(self) -> None:
        """Be protected again."""
        if self._own is not None:
            os.write(self._file, self._own)


class Spawner:
    """Starts programs. Relative paths are relative to ``work_dir``, which is made if missing.

    ``environment`` is what the image adds to that of every program.
    """

    def __init__(self, work_dir: str, environment: Mapping[str, str]) -> None:
        self._work_dir = work_dir
        self._environment = environment
        self._oom_score = OomScore()

    def prepare(self, spec: ExecSpec) -> Launch:
        """Find out what to start; raise `NotFoundError` for a missing program or user."""
        cwd = os.path.join(self._work_dir, spec.cwd) if spec.cwd else self._work_dir
        account = _find_account(spec.user) if spec.user else None
        env = {**(_account_environment(account) if account else _ROOT), **self._environment}
        if spec.pty:
            env["TERM"] = spec.pty.term
        env.update(spec.env)
        argv = spec.argv if spec.argv is not None else ["bash", "-c", spec.shell or ""]
        search_path = env.get("PATH", SYSTEM_PATH)
        program = _find_program(argv[0], search_path, cwd)
        if account is None:
            return Launch(program, argv, env, cwd)
        ids = ["--reuid", str(account.pw_uid), "--regid", str(account.pw_gid)]
        return Launch(
            _find_program("setpriv", SYSTEM_PATH, "/"),
            ["setpriv", *ids, "--init-groups", "--", *argv],
            env,
            cwd,
            (account.pw_uid, account.pw_gid),
        )

    def spawn(self, launch: Launch, actions: list[Action]) -> int:
        """Start it in a session of its own; give its process id."""
        self._enter(launch.cwd)
        try:
            self._oom_score.make_ordinary()
            return os.posix_spawn(
                launch.program,
                launch.argv,
                launch.env,
                file_actions=actions,
                setsid=True,
                setsigdef=_DEFAULT_SIGNALS,
            )
        except FileNotFoundError:
            raise NotFoundError(
                f"cannot run {launch.program!r}: its interpreter does not exist"
            ) from None
        except OSError as error:
            raise _refusal(f"cannot run {launch.program!r}", error) from None
        except ValueError as error:  # an environment name with "=" in it
            raise GuestError(f"cannot run {launch.program!r}: {error}") from None
        finally:
            self._oom_score.restore()
            os.chdir("/")

    def _enter(self, cwd: str) -> None:
        try:
            try:
                os.chdir(cwd)
            except FileNotFoundError:
                if cwd != self._work_dir:
                    raise NotFoundError(f"working directory {cwd!r} does not exist") from None
                make_work_dir(cwd)
                os.chdir(cwd)
        except NotADirectoryError:
            raise NotFoundError(f"working directory {cwd!r} is not a directory") from None
        except OSError as error:
            raise _refusal(f"cannot enter {cwd!r}", error) from None


def read_environment(path: str) -> dict[str, str]:
    """Give what the image's Dockerfile set with ENV; nothing where that cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            found = json.load(file)
        return {str(name): str(value) for name, value in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        _log.error("no environment from the image: %s: %s", path, error)
        return {}


def make_work_dir(path: str) -> None:
    """Make the directory that relative paths are relative to, for all users, if missing."""
    if not os.path.exists(path):
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o1777)  # noqa: S103 -- as /tmp itself


def _find_account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise NotFoundError(f"user {name!r} does not exist") from None


def _account_environment(account: pwd.struct_passwd) -> dict[str, str]:
    return {
        **_ROOT,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
    }


def _find_program(name: str, search_path: str, cwd: str) -> str:
    if "/" in name:
        program = os.path.join(cwd, name)
        if not os.path.exists(program):
            raise NotFoundError(f"program {program!r} does not exist")
        return program
    if name:
        for directory in search_path.split(":"):
            base = directory if directory.startswith("/") else os.path.join(cwd, directory)
            program = f"{base}/{name}"
            if os.access(program, os.X_OK) and not os.path.isdir(program):
                return program
    raise NotFoundError(f"program {name!r} not found in PATH ({search_path})")


def _refusal(what: str, error: OSError) -> GuestError:
    code = error.errno or errno.EIO
    return GuestError(f"{what}: {os.strerror(code)}", errno=code)
