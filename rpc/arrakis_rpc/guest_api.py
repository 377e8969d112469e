"""What the guest agent can be asked: parameters and results of its operations.

Paths are guest paths; a relative one is relative to `WORK_DIR`. Times are Unix times,
durations seconds, sizes bytes, unless a name says otherwise.
"""

from __future__ import annotations

from typing import Literal

from attrs import Attribute, field, frozen
from attrs.validators import ge, le, max_len, min_len, optional

WORK_DIR = "/tmp/server_files"  # noqa: S108 -- the Go program's name for it
MAX_AUTHORIZED_KEYS = 64 * 1024


def _path(_: object, attribute: Attribute[str], value: str) -> None:
    if not 0 < len(value) <= 4096 or "\0" in value:
        raise ValueError(f"{attribute.name} is a path of 1 to 4096 characters other than NUL")


@frozen
class Hello:
    """``agent.hello``: open a session. ``token`` is the resync token of the next one."""

    versions: list[int]
    token: bytes = field(repr=False, validator=[min_len(32), max_len(32)])


@frozen
class HelloResult:
    """The version both ends speak from here on, and who answers."""

    version: int
    agent: str
    python: str


@frozen
class Pty:
    """Size and type of the terminal that a command gets."""

    rows: int = field(default=24, validator=[ge(1), le(10_000)])
    cols: int = field(default=80, validator=[ge(1), le(10_000)])
    term: str = field(default="xterm-256color", validator=max_len(64))


@frozen
class ExecSpec:
    """``exec.run``: run a command.

    Exactly one of ``argv`` and ``shell`` (given to ``bash -c``) is set. The command runs in
    a session of its own; when the call is cancelled, or ``timeout`` seconds have passed,
    that session is killed. ``stdout`` and ``stderr`` are channels to the caller; with
    ``merge_output`` or a ``pty`` there is only ``stdout``. ``stdin`` is a channel from the
    caller if asked for, else empty. ``background`` answers as soon as the command runs: it
    then has no streams, and outlives the call.

    While it runs the caller may send ``exec.signal {signal}`` and ``exec.resize {rows, cols}``.
    """

    argv: list[str] | None = field(default=None, validator=optional(min_len(1)))
    shell: str | None = None
    cwd: str | None = field(default=None, validator=optional(_path))
    env: dict[str, str] = field(factory=dict)
    user: str | None = field(default=None, validator=optional(min_len(1)))
    timeout: float | None = field(default=None, validator=optional(ge(0)))
    stdin: bool = False
    merge_output: bool = False
    pty: Pty | None = None
    background: bool = False

    def __attrs_post_init__(self) -> None:
        if (self.argv is None) == (self.shell is None):
            raise ValueError("give either argv or shell")
        words = [*(self.argv or ()), self.shell, self.cwd, *self.env, *self.env.values()]
        if any("\0" in word for word in words if word):
            raise ValueError("a NUL character cannot be passed to a command")


@frozen
class ExecResult:
    """How a command ended: by ``exit_code``, or by ``signal``; neither in the background."""

    pid: int
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    duration: float = 0.0


FileKind = Literal["file", "directory", "symlink", "other"]


@frozen
class FileStat:
    """What is known of one file. ``target`` is where a symlink points."""

    name: str
    kind: FileKind
    size: int
    mode: int
    mtime: float
    uid: int
    gid: int
    target: str | None = None


@frozen
class FilePath:
    """``file.stat``: the path; a final symlink is not followed."""

    path: str = field(validator=_path)


@frozen
class FileList:
    """``file.list``: entries of a directory in order of their names, a page at a time."""

    path: str = field(validator=_path)
    after: str | None = None
    limit: int = field(default=1000, validator=[ge(1), le(1000)])


@frozen
class FileListResult:
    """A page of entries; ``more`` says that another follows after the last name."""

    entries: list[FileStat]
    more: bool


@frozen
class FileRead:
    """``file.read``: the bytes come on channel ``data``."""

    path: str = field(validator=_path)
    offset: int = field(default=0, validator=ge(0))
    length: int | None = field(default=None, validator=optional(ge(0)))


@frozen
class FileWrite:
    """``file.write``: the bytes are taken from channel ``data`` until it ends.

    The file appears whole, by a rename, or not at all; with ``append`` bytes are added to
    what is there. Missing parent directories are made if ``parents`` is set.
    """

    path: str = field(validator=_path)
    mode: int | None = field(default=None, validator=optional([ge(0), le(0o7777)]))
    mtime: float | None = None
    append: bool = False
    parents: bool = True


@frozen
class FileMkdir:
    """``file.mkdir``: with ``parents``, missing parents are made and an existing one is fine."""

    path: str = field(validator=_path)
    mode: int = field(default=0o755, validator=[ge(0), le(0o7777)])
    parents: bool = False


@frozen
class FileRemove:
    """``file.remove``: a file, an empty directory, or with ``recursive`` a whole tree."""

    path: str = field(validator=_path)
    recursive: bool = False


@frozen
class Network:
    """What the guest's network interface is to have.

    ``mac`` is the MAC address that it gets, ``address`` its IPv4 address with the prefix
    (``10.20.1.7/24``), ``gateway`` where its default route goes. Without ``dns`` the name
    servers stay what they are.
    """

    mac: str
    address: str
    gateway: str | None = None
    dns: list[str] = field(factory=list)


@frozen
class Identity:
    """``identity.apply``: become another machine than one's siblings; see the fork contract.

    ``entropy`` goes into the kernel's random pool. ``ssh_host_key`` is an OpenSSH private
    key, ``ssh_host_key_public`` its public line. ``ssh_authorized_keys`` is text as in the
    file of that name: who may log in as elara, besides those whom her own file names.
    ``asleep`` is for how many nanoseconds the machine has stood still: the wall clock is set
    forward by that. What the time is could not be said here, for a guest that has just been
    woken takes its time over the first call.
    """

    hostname: str = field(validator=[min_len(1), max_len(63)])
    machine_id: str = field(validator=[min_len(32), max_len(32)])
    entropy: bytes = field(repr=False, validator=[min_len(32), max_len(512)])
    ssh_host_key: bytes = field(repr=False)
    ssh_host_key_public: bytes
    network: Network | None = None
    ssh_authorized_keys: bytes = field(default=b"", validator=max_len(MAX_AUTHORIZED_KEYS))
    asleep: int = 0


@frozen
class Clock:
    """``clock.set``: set the wall clock to ``realtime``, in nanoseconds of Unix time."""

    realtime: int = field(validator=ge(0))


@frozen
class Health:
    """``agent.health``: how the guest is. ``booted`` once systemd has finished starting up."""

    booted: bool
    uptime: float
    load: float
    memory_total: int
    memory_available: int
    processes: int


@frozen
class Nothing:
    """Parameters, or a result, without fields."""
