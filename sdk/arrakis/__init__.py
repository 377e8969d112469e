"""Disposable Linux microVMs that can be snapshotted, restored and forked.

::

    from arrakis import SandboxManager

    manager = SandboxManager()
    with manager.start_sandbox("agent-sandbox") as sandbox:
        print(sandbox.run_cmd("echo hello world")["output"])
        checkpoint = sandbox.snapshot("before")
        a, b, c = sandbox.fork(3)

Threads may share a manager and its sandboxes: every call has a connection to itself. So
may a child made by `os.fork`, which opens connections of its own. A `Process` may be
read, written and signalled by different threads at a time, but ends with the process of
the operating system that started it.

What is named here is loaded when it is first used, so that ``import arrakis`` costs little.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arrakis_rpc.daemon_api import Event as Event
    from arrakis_rpc.daemon_api import Progress as Progress
    from arrakis_rpc.errors import AccessDeniedError as AccessDeniedError
    from arrakis_rpc.errors import AlreadyExistsError as AlreadyExistsError
    from arrakis_rpc.errors import ArrakisError as ArrakisError
    from arrakis_rpc.errors import CancelledError as CancelledError
    from arrakis_rpc.errors import ConnectionLostError as ConnectionLostError
    from arrakis_rpc.errors import DeadlineError as DeadlineError
    from arrakis_rpc.errors import ExhaustedError as ExhaustedError
    from arrakis_rpc.errors import FileOperationError as FileOperationError
    from arrakis_rpc.errors import GuestError as GuestError
    from arrakis_rpc.errors import ImageBuildError as ImageBuildError
    from arrakis_rpc.errors import IntegrityError as IntegrityError
    from arrakis_rpc.errors import InternalError as InternalError
    from arrakis_rpc.errors import InvalidParamsError as InvalidParamsError
    from arrakis_rpc.errors import InvalidStateError as InvalidStateError
    from arrakis_rpc.errors import NotFoundError as NotFoundError
    from arrakis_rpc.errors import ProtocolError as ProtocolError
    from arrakis_rpc.errors import UnknownMethodError as UnknownMethodError
    from arrakis_rpc.errors import UnsupportedError as UnsupportedError
    from arrakis_rpc.errors import VmmError as VmmError
    from arrakis_rpc.guest_api import FileStat as FileStat
    from arrakis_rpc.guest_api import Pty as Pty
    from arrakis_rpc.network_api import Forward as Forward
    from arrakis_rpc.network_api import PortRequest as PortRequest

    from .desktop import Desktop as Desktop
    from .desktop import Screenshot as Screenshot
    from .explore import Branch as Branch
    from .explore import Exploration as Exploration
    from .explore import ExplorationFailedError as ExplorationFailedError
    from .files import Files as Files
    from .manager import SandboxManager as SandboxManager
    from .network import Ports as Ports
    from .process import CommandFailedError as CommandFailedError
    from .process import Completed as Completed
    from .process import Process as Process
    from .sandbox import Sandbox as Sandbox
    from .trees import Transfer as Transfer

__version__ = "0.1.0"

_HOMES = {
    "SandboxManager": "arrakis.manager",
    "Sandbox": "arrakis.sandbox",
    "Process": "arrakis.process",
    "Completed": "arrakis.process",
    "CommandFailedError": "arrakis.process",
    "Desktop": "arrakis.desktop",
    "Screenshot": "arrakis.desktop",
    "Branch": "arrakis.explore",
    "Exploration": "arrakis.explore",
    "ExplorationFailedError": "arrakis.explore",
    "Files": "arrakis.files",
    "Ports": "arrakis.network",
    "Transfer": "arrakis.trees",
    "Event": "arrakis_rpc.daemon_api",
    "Progress": "arrakis_rpc.daemon_api",
    "FileStat": "arrakis_rpc.guest_api",
    "Pty": "arrakis_rpc.guest_api",
    "Forward": "arrakis_rpc.network_api",
    "PortRequest": "arrakis_rpc.network_api",
    **dict.fromkeys(
        (
            "AccessDeniedError",
            "AlreadyExistsError",
            "ArrakisError",
            "CancelledError",
            "ConnectionLostError",
            "DeadlineError",
            "ExhaustedError",
            "FileOperationError",
            "GuestError",
            "ImageBuildError",
            "IntegrityError",
            "InternalError",
            "InvalidParamsError",
            "InvalidStateError",
            "NotFoundError",
            "ProtocolError",
            "UnknownMethodError",
            "UnsupportedError",
            "VmmError",
        ),
        "arrakis_rpc.errors",
    ),
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'arrakis' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
