"""The states of a VM and the legal ways between them."""

from __future__ import annotations

from enum import Enum

from arrakis_rpc.errors import InvalidStateError


class VmState(Enum):
    """Where a VM is in its life; all values but SUSPENDED are those of the Go program."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"


_LEGAL = {
    VmState.CREATED: {VmState.RUNNING, VmState.SUSPENDED, VmState.STOPPED},
    VmState.RUNNING: {VmState.PAUSED, VmState.STOPPED},
    VmState.PAUSED: {VmState.RUNNING, VmState.SUSPENDED, VmState.STOPPED},
    VmState.SUSPENDED: {VmState.RUNNING, VmState.STOPPED},
    VmState.STOPPED: set(),
}

_HINTS = {
    VmState.CREATED: "it is still starting; wait until its start has returned",
    VmState.RUNNING: "it is running; pause it first",
    VmState.PAUSED: "it is paused; resume it first",
    VmState.SUSPENDED: "it is suspended to disk; resume it first",
    VmState.STOPPED: "it has ended for good; destroy it, and start another or restore a snapshot",
}


class StateMachine:
    """One VM's state, which changes only along the legal ways."""

    def __init__(self, vm: str) -> None:
        self.vm = vm
        self.state = VmState.CREATED

    def require(self, *states: VmState) -> None:
        """Raise `InvalidStateError` unless the VM is in one of ``states``."""
        if self.state not in states:
            required = " or ".join(state.value for state in states)
            raise InvalidStateError(
                f"VM '{self.vm}' is {self.state.value}, this needs {required}",
                vm=self.vm,
                state=self.state.value,
                required=required,
                hint=_HINTS[self.state],
            )

    def move(self, target: VmState) -> None:
        """Change the state; raise `InvalidStateError` where there is no way to ``target``."""
        if target not in _LEGAL[self.state]:
            self.require(*(state for state, ways in _LEGAL.items() if target in ways))
        self.state = target
