"""Every error that crosses a boundary of the system.

::

    ArrakisError
    ├── ProtocolError          the peer broke the rules of the wire; the connection ends
    ├── UnknownMethodError     no such operation
    ├── InvalidParamsError     a parameter is missing, unknown, of a wrong type or out of range
    ├── NotFoundError          no VM, snapshot, image, file or program of that name
    ├── AlreadyExistsError     the name is taken
    ├── InvalidStateError      legal, but not in this state; carries state and required state
    ├── ExhaustedError         memory, disk, addresses or quota do not suffice
    ├── UnsupportedError       this host, VMM or build cannot do it
    ├── DeadlineError          it took longer than it may
    ├── CancelledError         the caller cancelled it or went away
    ├── IntegrityError         stored data is not what was stored
    ├── GuestError             the guest, or its agent, failed or cannot be reached
    ├── FileOperationError     a file operation in the guest failed; carries errno
    ├── VmmError               the hypervisor process failed
    ├── ImageBuildError        a Dockerfile step failed
    ├── AccessDeniedError      no token, a wrong or a revoked one, or not by this way
    ├── ConnectionLostError    the daemon (seen from the SDK) is not there or went away
    └── InternalError          a defect in this software
"""

from __future__ import annotations

from typing import Any, ClassVar

DATA_FIELDS = ("vm", "state", "required", "hint")


class ArrakisError(Exception):
    """Root of all errors.

    ``vm`` names the machine concerned, ``state`` and ``required`` its actual and its
    needed state, ``hint`` what the caller can do next. ``detail`` holds what a subclass
    adds (errno, exit status, last lines of output); all of it survives the wire.
    """

    code: ClassVar[int] = -32000

    def __init__(
        self,
        message: str,
        *,
        vm: str | None = None,
        state: str | None = None,
        required: str | None = None,
        hint: str | None = None,
        **detail: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.vm = vm
        self.state = state
        self.required = required
        self.hint = hint
        self.detail = detail

    def to_wire(self) -> dict[str, Any]:
        """Give the JSON-RPC ``error`` member."""
        data = {name: value for name in DATA_FIELDS if (value := getattr(self, name)) is not None}
        if self.detail:
            data["detail"] = self.detail
        wire: dict[str, Any] = {"code": self.code, "message": self.message}
        if data:
            wire["data"] = data
        return wire


class ProtocolError(ArrakisError):
    """The peer sent something that the protocol does not allow."""

    code = -32700


class UnknownMethodError(ArrakisError):
    """No operation has this name."""

    code = -32601


class InvalidParamsError(ArrakisError):
    """A parameter is missing, unknown, of a wrong type, or out of range."""

    code = -32602


class InternalError(ArrakisError):
    """A defect in this software; the daemon's log has the traceback."""

    code = -32603


class NotFoundError(ArrakisError):
    """What was named does not exist."""

    code = -32001


class AlreadyExistsError(ArrakisError):
    """The name is taken."""

    code = -32002


class InvalidStateError(ArrakisError):
    """The operation is not legal in the present state."""

    code = -32003


class ExhaustedError(ArrakisError):
    """A resource of the host does not suffice."""

    code = -32004


class UnsupportedError(ArrakisError):
    """This host, VMM or build cannot do what was asked."""

    code = -32005


class DeadlineError(ArrakisError):
    """A time limit was exceeded."""

    code = -32006


class CancelledError(ArrakisError):
    """The call was cancelled by its caller."""

    code = -32007


class IntegrityError(ArrakisError):
    """Stored data does not match its checksum or its manifest."""

    code = -32008


class GuestError(ArrakisError):
    """The guest or its agent failed, or does not answer."""

    code = -32009


class FileOperationError(ArrakisError):
    """A file operation inside the guest failed; ``detail['errno']`` says how."""

    code = -32010


class VmmError(ArrakisError):
    """The hypervisor process failed; the message carries its last words."""

    code = -32011


class ImageBuildError(ArrakisError):
    """A step of an image build failed; ``detail`` has the step and its output."""

    code = -32012


class ConnectionLostError(ArrakisError):
    """The other end is not there, or went away in the middle of a call."""

    code = -32013


class AccessDeniedError(ArrakisError):
    """The caller shows no token, or one that does not let it do this."""

    code = -32014


_CLASSES: list[type[ArrakisError]] = [ArrakisError, *ArrakisError.__subclasses__()]
_BY_CODE = {cls.code: cls for cls in _CLASSES}


def error_from_wire(wire: dict[str, Any]) -> ArrakisError:
    """Make the exception that a JSON-RPC ``error`` member stands for.

    Unknown codes and malformed data (a hostile guest may send them) give the root class
    with the message as text; this never raises.
    """
    code, message, data = wire.get("code"), wire.get("message"), wire.get("data")
    cls = _BY_CODE.get(code, ArrakisError) if isinstance(code, int) else ArrakisError
    fields = data if isinstance(data, dict) else {}
    texts = {name: str(fields[name]) for name in DATA_FIELDS if fields.get(name) is not None}
    detail = fields.get("detail")
    error = cls(str(message), **texts)
    if isinstance(detail, dict):
        error.detail = {str(key): value for key, value in detail.items()}
    return error
