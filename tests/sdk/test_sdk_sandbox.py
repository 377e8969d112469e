"""Sandboxes and managers: the shapes that programs for py_arrakis rely on, and the new ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from scripted_daemon import VM, Calls, Peer, Script, Server, answering, completed
from scripted_guest import Guest

import arrakis
from arrakis import (
    AlreadyExistsError,
    FileOperationError,
    NotFoundError,
    Sandbox,
    SandboxManager,
)
from arrakis_rpc.connection import CallReceived

Start = Callable[[Script], Server]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (SandboxManager.list_all, []),
        (SandboxManager.destroy_all, []),
        (SandboxManager.restore, ["vm_name", "snapshot_id"]),
        (SandboxManager.start_sandbox, ["name"]),
        (Sandbox.info, []),
        (Sandbox.update_state, ["status"]),
        (Sandbox.destroy, []),
        (Sandbox.snapshot, ["snapshot_id"]),
        (Sandbox.run_cmd, ["cmd", "blocking"]),
        (Sandbox.upload_files, ["files"]),
        (Sandbox.download_files, ["paths"]),
    ],
)
def test_methods_take_what_those_of_py_arrakis_take(
    function: Callable[..., Any], names: list[str]
) -> None:
    """Every method of py_arrakis is there, its arguments in their order and by their names."""
    parameters = [*inspect.signature(function).parameters.values()][1:]
    positional = [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert [one.name for one in positional] == names
    assert all(one.default is not one.empty for one in parameters[len(names) :])


def test_info_has_the_keys_of_py_arrakis(scripted: Start) -> None:
    """info gives name, status, ip and tap, and port forwards only when there are any."""
    forward = {"host_port": "3000", "guest_port": "5901", "description": "gui"}
    info = Calls(VM)
    sandbox = scripted(answering(vm_info=info)).sandbox
    told = sandbox.info()
    assert {key: told[key] for key in ("name", "status", "ip", "tap_device_name")} == {
        "name": "box",
        "status": "RUNNING",
        "ip": "10.20.1.2/24",
        "tap_device_name": "tap0",
    }
    assert "port_forwards" not in told
    info.result = {**VM, "port_forwards": [forward]}
    assert sandbox.info()["port_forwards"] == [forward]


def test_run_cmd_gives_output_and_error(scripted: Start) -> None:
    """run_cmd gives both streams as one text, and how a command failed."""

    def run(peer: Peer, call: CallReceived) -> Any:
        args = call.params["args"]
        assert args["shell"] == "make"
        assert args["merge_output"]
        peer.data(call, "stdout", b"out\xff\n")
        return results.pop(0)

    results = [completed(), completed(exit_code=2), completed(exit_code=None, signal=9)]
    sandbox = scripted(answering(exec_run=run)).sandbox
    assert sandbox.run_cmd("make") == {"output": "out\ufffd\n", "error": ""}
    assert sandbox.run_cmd("make")["error"] == "exit status 2"
    assert sandbox.run_cmd("make") == {"output": "out\ufffd\n", "error": "signal: killed"}


def test_run_cmd_in_the_background_returns_at_once(scripted: Start) -> None:
    """Without blocking, run_cmd says that the command was started."""
    run = Calls({"pid": 7})
    assert scripted(answering(exec_run=run)).sandbox.run_cmd("sleep 9", blocking=False) == {
        "output": "Command 'sleep 9' started in background",
        "error": "",
    }
    assert run.seen[0]["args"]["background"]


def test_update_state_takes_the_words_of_py_arrakis(scripted: Start) -> None:
    """Words for states become the operations they mean; another word is a ValueError."""
    calls = {name: Calls(VM) for name in ("vm_stop", "vm_pause", "vm_resume")}
    sandbox = scripted(answering(**calls)).sandbox
    for status in ("stopped", "paused", "running", "resume"):
        sandbox.update_state(status)
    assert [len(call.seen) for call in calls.values()] == [1, 1, 2]
    with pytest.raises(ValueError, match="Status must be"):
        sandbox.update_state("gone")


def test_snapshot_leaves_the_choice_of_an_id_to_the_daemon(scripted: Start) -> None:
    """Without an id none is sent, and the daemon's is what comes back."""
    info = {
        "id": "chosen",
        "vm": "box",
        "template": "t",
        "parent": None,
        "label": "",
        "created": 1.0,
        "bytes": 1,
        "memory_mib": 512,
        "vcpus": 1,
        "changed_pages": 3,
        "pause": 0.01,
    }
    create = Calls(info)
    sandbox = scripted(answering(snapshot_create=create)).sandbox
    assert sandbox.snapshot() == "chosen"
    sandbox.snapshot("mine")
    assert create.seen == [{"vm": "box"}, {"vm": "box", "id": "mine"}]


def test_files_of_py_arrakis(scripted: Start) -> None:
    """Uploads take path and content; downloads give content or an error for each path."""
    guest = Guest()
    sandbox = scripted(guest.script).sandbox
    sandbox.upload_files([{"path": "a", "content": "Grüße"}, {"path": "b", "content": ""}])
    guest.files["c"] = b"\xff"
    assert sandbox.download_files(["a", "none", "c"]) == [
        {"path": "a", "content": "Grüße"},
        {"path": "none", "error": "none: No such file or directory"},
        {"path": "c", "content": "\ufffd"},
    ]


def test_upload_that_fails_raises(scripted: Start) -> None:
    """An upload that the guest refuses is an exception, as in py_arrakis."""
    refused = FileOperationError("/proc/x: Permission denied", errno=13)
    with pytest.raises(FileOperationError, match="Permission"):
        scripted(answering(file_write=refused)).sandbox.upload_files([{"path": "x", "content": ""}])


def test_block_destroys_the_sandbox(scripted: Start) -> None:
    """Leaving the block destroys the VM, also when the block fails."""
    destroy = Calls({})
    sandbox = scripted(answering(vm_destroy=destroy)).sandbox
    with sandbox:
        pass
    with pytest.raises(LookupError), sandbox:
        raise LookupError
    assert destroy.seen == [{"name": "box"}] * 2


def test_failing_destroy_does_not_hide_why_the_block_ended(scripted: Start) -> None:
    """The error of the block comes out; that of destroying only when there is no other."""
    sandbox = scripted(answering(vm_destroy=NotFoundError("there is no VM"))).sandbox
    with pytest.raises(LookupError), sandbox:
        raise LookupError
    with pytest.raises(NotFoundError), sandbox:
        pass


def test_start_restore_and_fork_send_what_was_given(scripted: Start) -> None:
    """Only what the caller chose is sent; the rest is the daemon's to decide."""
    start, fork = Calls(VM), Calls({"vms": [{**VM, "name": "left"}, {**VM, "name": "right"}]})
    manager = scripted(answering(vm_start=start, vm_fork=fork)).manager
    sandbox = manager.start_sandbox("box")
    manager.start_sandbox("box", image="mine", vcpus=2, entry_point="run")
    manager.restore("box", "before")
    assert start.seen == [
        {"name": "box"},
        {"name": "box", "image": "mine", "vcpus": 2, "entry_point": "run"},
        {"name": "box", "snapshot": "before"},
    ]
    assert [one.name for one in sandbox.fork(2)] == ["left", "right"]
    sandbox.fork(2, names=("left", "right"))
    assert fork.seen == [
        {"name": "box", "count": 2},
        {"name": "box", "count": 2, "names": ["left", "right"]},
    ]


def test_errors_carry_what_the_daemon_said(scripted: Start) -> None:
    """Class, hint and detail of an error survive the way to the caller."""
    taken = AlreadyExistsError("name taken", vm="box", hint="choose another")
    with pytest.raises(AlreadyExistsError, match="name taken") as caught:
        scripted(answering(vm_start=taken)).manager.start_sandbox("box")
    assert (caught.value.vm, caught.value.hint) == ("box", "choose another")


def test_everything_that_is_named_can_be_imported() -> None:
    """Each public name is where it says it is, and no other name is there."""
    for name in arrakis._HOMES:
        assert getattr(arrakis, name).__name__ == name
    assert set(arrakis._HOMES) <= set(dir(arrakis))
    with pytest.raises(AttributeError):
        _ = arrakis.Frobnicator
