"""Every operation: its name, parameters and result, streams, and the states it is legal in.

Two tables: what a client asks the daemon (`DAEMON`), and what the daemon asks the guest
agent (`GUEST`). Servers dispatch by them, clients structure results by them, and the
documentation is made of them. ``states`` is empty where no VM is concerned. Besides the
errors named in ``raises``, every operation can raise `InvalidParamsError`,
`CancelledError` and `InternalError`, and each one on a VM `NotFoundError` and (where
``states`` names some) `InvalidStateError`.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from . import daemon_api as d
from . import desktop_api as t
from . import errors as e
from . import guest_api as g
from . import network_api as n

_RUNNING = ("RUNNING",)
_RESTING = ("PAUSED", "SUSPENDED")
_ALIVE = ("RUNNING", "PAUSED")
_ANY = ("CREATED", "RUNNING", "PAUSED", "SUSPENDED", "STOPPED")
_GUEST_ERRORS = (e.InvalidStateError, e.GuestError)
_FILE_ERRORS = (*_GUEST_ERRORS, e.FileOperationError)


@frozen
class Operation:
    """One thing that can be called.

    ``sends`` are the channels on which the callee streams to the caller, ``takes`` those in
    the other direction, ``notes`` the notifications a caller may send while it runs.
    """

    method: str
    params: Any
    result: Any
    summary: str
    states: tuple[str, ...] = ()
    raises: tuple[type[e.ArrakisError], ...] = ()
    sends: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _table(*operations: Operation) -> dict[str, Operation]:
    return {operation.method: operation for operation in operations}


GUEST = _table(
    Operation("agent.hello", g.Hello, g.HelloResult, "open a session"),
    Operation("agent.health", g.Nothing, g.Health, "how the guest is"),
    Operation("identity.apply", g.Identity, g.Nothing, "become a machine of one's own"),
    Operation("clock.set", g.Clock, g.Nothing, "set the wall clock"),
    Operation(
        "exec.run",
        g.ExecSpec,
        g.ExecResult,
        "run a command",
        states=_RUNNING,
        raises=(*_GUEST_ERRORS, e.NotFoundError, e.InvalidParamsError),
        sends=("stdout", "stderr"),
        takes=("stdin",),
        notes=("exec.signal", "exec.resize"),
    ),
    Operation(
        "file.read",
        g.FileRead,
        g.FileStat,
        "read a file",
        states=_RUNNING,
        raises=_FILE_ERRORS,
        sends=("data",),
    ),
    Operation(
        "file.write",
        g.FileWrite,
        g.FileStat,
        "write a file, whole or not at all",
        states=_RUNNING,
        raises=_FILE_ERRORS,
        takes=("data",),
    ),
    Operation(
        "file.list", g.FileList, g.FileListResult, "list a directory", _RUNNING, _FILE_ERRORS
    ),
    Operation("file.stat", g.FilePath, g.FileStat, "describe a file", _RUNNING, _FILE_ERRORS),
    Operation("file.mkdir", g.FileMkdir, g.FileStat, "make a directory", _RUNNING, _FILE_ERRORS),
    Operation("file.remove", g.FileRemove, g.Nothing, "remove files", _RUNNING, _FILE_ERRORS),
)

_BUILD_ERRORS = (
    e.NotFoundError,
    e.ExhaustedError,
    e.IntegrityError,
    e.UnsupportedError,
    e.DeadlineError,
    e.GuestError,
    e.VmmError,
)
_DESKTOP_ERRORS = (e.GuestError, e.UnsupportedError, e.DeadlineError)
_LOCAL_ERRORS = (e.AccessDeniedError,)  # unless the caller came by the Unix socket
_START_ERRORS = (e.AlreadyExistsError, *_BUILD_ERRORS)

DAEMON = _table(
    Operation("system.hello", d.SystemHello, d.SystemHelloResult, "open a connection"),
    Operation("system.health", g.Nothing, d.SystemHealth, "whether the daemon is well"),
    Operation("system.info", g.Nothing, d.SystemInfo, "what this daemon is and uses"),
    Operation("system.doctor", g.Nothing, d.SystemDoctor, "what this host can do"),
    Operation(
        "vm.start",
        d.VmStart,
        d.VmInfo,
        "start a VM from a template or a snapshot",
        raises=_START_ERRORS,
    ),
    Operation("vm.list", d.Page, d.VmList, "all VMs, a page at a time"),
    Operation("vm.info", d.VmName, d.VmInfo, "one VM", _ANY),
    Operation(
        "vm.health", d.VmName, g.Health, "how the guest in a VM is", _RUNNING, (e.GuestError,)
    ),
    Operation("vm.stop", d.VmName, d.VmInfo, "shut a VM down", _ALIVE),
    Operation("vm.pause", d.VmName, d.VmInfo, "halt a VM's vCPUs", _RUNNING, (e.VmmError,)),
    Operation(
        "vm.suspend",
        d.VmName,
        d.VmInfo,
        "keep a VM on disk until it is resumed, and end its process",
        _ALIVE,
        (e.ExhaustedError, e.DeadlineError, e.GuestError, e.VmmError),
    ),
    Operation(
        "vm.resume",
        d.VmName,
        d.VmInfo,
        "let a paused or suspended VM go on",
        _RESTING,
        _BUILD_ERRORS,
    ),
    Operation("vm.set_limits", d.VmSetLimits, d.VmInfo, "change how long a VM may live", _ANY),
    Operation("vm.destroy", d.VmName, g.Nothing, "end a VM and forget it", _ANY),
    Operation("vm.destroy_all", g.Nothing, g.Nothing, "end and forget all VMs"),
    Operation(
        "vm.fork",
        d.VmFork,
        d.VmList,
        "siblings of a VM, all or none",
        _ALIVE,
        _START_ERRORS,
    ),
    Operation(
        "vm.rollback",
        d.VmRollback,
        d.VmInfo,
        "take a VM back to a snapshot that it descends from",
        _ALIVE,
        _BUILD_ERRORS,
    ),
    Operation(
        "vm.rename",
        d.VmRename,
        d.VmInfo,
        "give a VM another name, or that of a VM whose place it takes",
        _ALIVE,
        (e.AlreadyExistsError, e.DeadlineError, e.GuestError),
    ),
    Operation(
        "snapshot.create",
        d.SnapshotCreate,
        d.SnapshotInfo,
        "keep a VM as it is now",
        _ALIVE,
        (e.AlreadyExistsError, e.ExhaustedError, e.DeadlineError, e.GuestError, e.VmmError),
    ),
    Operation("snapshot.list", d.Page, d.SnapshotList, "all snapshots, a page at a time"),
    Operation(
        "snapshot.info", d.SnapshotId, d.SnapshotInfo, "one snapshot", raises=(e.NotFoundError,)
    ),
    Operation(
        "snapshot.diff",
        d.SnapshotPair,
        d.SnapshotDifference,
        "what is different in one snapshot or template from another",
        raises=_BUILD_ERRORS,
    ),
    Operation(
        "snapshot.export",
        d.SnapshotId,
        g.Nothing,
        "a snapshot, its ancestors and its template as one archive",
        raises=(e.NotFoundError, e.IntegrityError),
        sends=("data",),
    ),
    Operation(
        "snapshot.import",
        g.Nothing,
        d.SnapshotImported,
        "take what was exported by another daemon on a host of the same kind",
        raises=(
            e.AlreadyExistsError,
            e.ExhaustedError,
            e.IntegrityError,
            e.UnsupportedError,
        ),
        takes=("data",),
    ),
    Operation(
        "snapshot.delete",
        d.SnapshotDelete,
        g.Nothing,
        "delete a snapshot; those on top of it stay whole",
        raises=(e.NotFoundError,),
    ),
    *(
        Operation(
            operation.method,
            d.InGuest[operation.params],  # type: ignore[name-defined]
            operation.result,
            f"in a VM: {operation.summary}",
            operation.states,
            operation.raises,
            operation.sends,
            operation.takes,
            operation.notes,
        )
        for operation in GUEST.values()
        if operation.method.startswith(("exec.", "file."))
    ),
    Operation("port.list", d.VmName, d.PortList, "the ports that lead into a VM", _ALIVE),
    Operation(
        "port.add",
        d.PortAdd,
        n.Forward,
        "forward one more port into a VM",
        _ALIVE,
        (e.AlreadyExistsError, e.ExhaustedError, e.UnsupportedError),
    ),
    Operation(
        "port.remove",
        d.PortRemove,
        g.Nothing,
        "forward a port no longer",
        _ALIVE,
        (e.NotFoundError, e.UnsupportedError),
    ),
    Operation(
        "egress.set",
        d.EgressSet,
        g.Nothing,
        "change what a VM may reach",
        _ALIVE,
        (e.UnsupportedError,),
    ),
    Operation(
        "desktop.screenshot",
        t.DesktopScreenshot,
        t.ScreenSize,
        "a picture of a VM's screen",
        _RUNNING,
        _DESKTOP_ERRORS,
        sends=("data",),
    ),
    Operation(
        "desktop.click",
        t.DesktopClick,
        g.Nothing,
        "click at a place of a VM's screen",
        _RUNNING,
        _DESKTOP_ERRORS,
    ),
    Operation(
        "desktop.move",
        t.DesktopMove,
        g.Nothing,
        "bring the pointer to a place of a VM's screen",
        _RUNNING,
        _DESKTOP_ERRORS,
    ),
    Operation(
        "desktop.drag",
        t.DesktopDrag,
        g.Nothing,
        "drag something from one place of a VM's screen to another",
        _RUNNING,
        _DESKTOP_ERRORS,
    ),
    Operation(
        "desktop.scroll",
        t.DesktopScroll,
        g.Nothing,
        "turn the wheel at a place of a VM's screen",
        _RUNNING,
        _DESKTOP_ERRORS,
    ),
    Operation(
        "desktop.type",
        t.DesktopType,
        g.Nothing,
        "type a text where a VM's screen has the focus",
        _RUNNING,
        _DESKTOP_ERRORS,
    ),
    Operation(
        "desktop.key",
        t.DesktopKey,
        g.Nothing,
        "press keys where a VM's screen has the focus",
        _RUNNING,
        _DESKTOP_ERRORS,
    ),
    Operation("image.list", g.Nothing, d.ImageList, "all images"),
    Operation(
        "image.build",
        d.ImageBuild,
        d.ImageInfo,
        "build an image from a Dockerfile",
        raises=(e.ImageBuildError, e.ExhaustedError, e.UnsupportedError),
        takes=("context",),
    ),
    Operation("image.delete", d.ImageName, g.Nothing, "delete an image", raises=(e.NotFoundError,)),
    Operation(
        "image.prune",
        d.ImagePrune,
        d.ImageList,
        "delete images without a name that nothing needs",
        raises=(e.IntegrityError, e.ExhaustedError),
    ),
    Operation("template.list", g.Nothing, d.TemplateList, "all templates"),
    Operation(
        "template.build",
        d.TemplateBuild,
        d.TemplateInfo,
        "boot a shape once, for all later starts",
        raises=_BUILD_ERRORS,
    ),
    Operation(
        "template.delete",
        d.TemplateId,
        g.Nothing,
        "delete a template on which nothing stands",
        raises=(e.NotFoundError, e.InvalidStateError),
    ),
    Operation(
        "token.create",
        d.TokenName,
        d.TokenCreated,
        "make a token for clients that come by HTTP",
        raises=(e.AlreadyExistsError, e.ExhaustedError, *_LOCAL_ERRORS),
    ),
    Operation(
        "token.list", g.Nothing, d.TokenList, "all tokens, without secrets", raises=_LOCAL_ERRORS
    ),
    Operation(
        "token.revoke",
        d.TokenName,
        g.Nothing,
        "let nobody in with a token, and cut off who is",
        raises=(e.NotFoundError, *_LOCAL_ERRORS),
    ),
    Operation(
        "events.subscribe",
        g.Nothing,
        g.Nothing,
        "a notification 'event' for all that happens, until cancelled",
    ),
)
