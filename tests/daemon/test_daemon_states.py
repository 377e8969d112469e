"""The legal ways between a VM's states."""

from __future__ import annotations

from itertools import product

import pytest

from arrakis_rpc.errors import InvalidStateError
from arrakisd.machines.states import StateMachine, VmState

CREATED, RUNNING, PAUSED, SUSPENDED, STOPPED = VmState

PAIRS = list(product(VmState, VmState))

LEGAL = {
    (CREATED, RUNNING),
    (CREATED, SUSPENDED),
    (CREATED, STOPPED),
    (RUNNING, PAUSED),
    (RUNNING, STOPPED),
    (PAUSED, RUNNING),
    (PAUSED, SUSPENDED),
    (PAUSED, STOPPED),
    (SUSPENDED, RUNNING),
    (SUSPENDED, STOPPED),
}

WAYS = {
    CREATED: [],
    RUNNING: [RUNNING],
    PAUSED: [RUNNING, PAUSED],
    SUSPENDED: [RUNNING, PAUSED, SUSPENDED],
    STOPPED: [RUNNING, STOPPED],
}


def machine_in(state: VmState) -> StateMachine:
    """Bring a new machine into a state, by legal ways."""
    machine = StateMachine("vm-1")
    for step in WAYS[state]:
        machine.move(step)
    assert machine.state is state
    return machine


@pytest.mark.parametrize(("state", "target"), PAIRS)
def test_moves(state: VmState, target: VmState) -> None:
    """A move is made if it is in the table; else it is refused and the state stays."""
    machine = machine_in(state)
    if (state, target) in LEGAL:
        machine.move(target)
        assert machine.state is target
        return
    with pytest.raises(InvalidStateError) as caught:
        machine.move(target)
    assert machine.state is state
    assert caught.value.state == state.value
    assert caught.value.hint


@pytest.mark.parametrize(("state", "target"), PAIRS)
def test_required_states(state: VmState, target: VmState) -> None:
    """A refused move says from which states it would be legal."""
    if (state, target) in LEGAL:
        return
    with pytest.raises(InvalidStateError) as caught:
        machine_in(state).move(target)
    sources = [source.value for source in VmState if (source, target) in LEGAL]
    assert (caught.value.required or "").split(" or ") == (sources or [""])


@pytest.mark.parametrize("state", VmState)
def test_require(state: VmState) -> None:
    """A required state passes where it holds; else the error names VM, state and need."""
    machine = machine_in(state)
    machine.require(state)
    machine.require(*VmState)
    others = [other for other in VmState if other is not state][:2]
    with pytest.raises(InvalidStateError) as caught:
        machine.require(*others)
    error = caught.value
    assert (error.vm, error.state) == ("vm-1", state.value)
    assert error.required == f"{others[0].value} or {others[1].value}"
    assert all(word in str(error) for word in ("vm-1", state.value, error.required))


def test_names() -> None:
    """The states are those of the Go program, and one more."""
    names = ["CREATED", "RUNNING", "PAUSED", "SUSPENDED", "STOPPED"]
    assert [state.value for state in VmState] == names
