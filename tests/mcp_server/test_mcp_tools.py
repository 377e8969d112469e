"""The tools and resources, against a daemon that says whatever a test wants it to say."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

import mcp_types
import pytest
import trio
from cli_harness import EVERYTHING, FORWARD, SNAPSHOT
from mcp import MCPError
from mcp_harness import fail, inside, on_stdio, read, text_of, use
from scripted_daemon import VM, Peer, Script, Server, answering, completed
from scripted_guest import Guest, stat

from arrakis_rpc.connection import CallReceived
from arrakis_rpc.errors import (
    AlreadyExistsError,
    ExhaustedError,
    FileOperationError,
    InvalidStateError,
    NotFoundError,
)
from arrakis_rpc.text import as_unicode

Start = Callable[[Script], Server]

ORIGINAL = {
    "start_sandbox": {"name": "box"},
    "restore_snapshot": {"vm_name": "box", "snapshot_id": "before"},
    "snapshot": {"vm_name": "box", "snapshot_id": "before"},
    "run_command": {"vm_name": "box", "cmd": "true"},
    "upload_file": {"vm_name": "box", "path": "a", "content": "text"},
    "download_file": {"vm_name": "box", "path": "a"},
    "destroy_vm": {"vm_name": "box"},
    "destroy_all_vms": {},
    "update_vm_state": {"vm_name": "box", "status": "paused"},
}
# What is asked of the daemon by each tool that only passes on what it is given.
ASKS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("start_sandbox", {"name": "box"}, "vm.start", {"name": "box"}),
    (
        "start_sandbox",
        {"name": "box", "image": "mine", "vcpus": 2, "memory_mib": 512, "disk_mib": 64},
        "vm.start",
        {"name": "box", "image": "mine", "vcpus": 2, "memory_mib": 512, "disk_mib": 64},
    ),
    (
        "restore_snapshot",
        {"vm_name": "box", "snapshot_id": "before"},
        "vm.start",
        {"name": "box", "snapshot": "before"},
    ),
    ("snapshot", {"vm_name": "box"}, "snapshot.create", {"vm": "box"}),
    (
        "snapshot",
        {"vm_name": "box", "snapshot_id": "before"},
        "snapshot.create",
        {"vm": "box", "id": "before"},
    ),
    ("update_vm_state", {"vm_name": "box", "status": "paused"}, "vm.pause", {"name": "box"}),
    ("update_vm_state", {"vm_name": "box", "status": "suspended"}, "vm.suspend", {"name": "box"}),
    ("update_vm_state", {"vm_name": "box", "status": "running"}, "vm.resume", {"name": "box"}),
    ("update_vm_state", {"vm_name": "box", "status": "resume"}, "vm.resume", {"name": "box"}),
    ("update_vm_state", {"vm_name": "box", "status": "stopped"}, "vm.stop", {"name": "box"}),
    ("destroy_vm", {"vm_name": "box"}, "vm.destroy", {"name": "box"}),
    ("destroy_all_vms", {}, "vm.destroy_all", {}),
    ("list_vms", {}, "vm.list", {}),
    ("vm_info", {"vm_name": "box"}, "vm.info", {"name": "box"}),
    ("fork", {"vm_name": "box", "count": 2}, "vm.fork", {"name": "box", "count": 2}),
    (
        "fork",
        {"vm_name": "box", "names": ["left", "right"]},
        "vm.fork",
        {"name": "box", "count": 2, "names": ["left", "right"]},
    ),
    (
        "rollback",
        {"vm_name": "box", "snapshot_id": "before"},
        "vm.rollback",
        {"name": "box", "snapshot": "before"},
    ),
    ("snapshots", {}, "snapshot.list", {}),
    ("snapshot_tree", {}, "snapshot.list", {}),
    (
        "delete_snapshot",
        {"snapshot_id": "before"},
        "snapshot.delete",
        {"id": "before", "recursive": False},
    ),
    ("ports", {"vm_name": "box"}, "port.list", {"name": "box"}),
    (
        "add_port",
        {"vm_name": "box", "guest_port": 8000, "description": "web"},
        "port.add",
        {"vm": "box", "port": {"guest_port": 8000, "description": "web", "publish": False}},
    ),
    (
        "remove_port",
        {"vm_name": "box", "host_port": 20000},
        "port.remove",
        {"vm": "box", "host_port": 20000},
    ),
    ("health", {}, "system.health", {}),
]


def remembering(asked: list[tuple[str, dict[str, Any]]], **changes: Any) -> Script:
    """Make a script that answers everything, and keeps what it was asked."""

    def answer_with(result: Any) -> Any:
        def answer(peer: Peer, call: CallReceived) -> Any:
            asked.append((call.method, call.params))
            return result(peer, call) if callable(result) else result

        return answer

    answers = {**EVERYTHING, **changes}
    return answering(**{name: answer_with(result) for name, result in answers.items()})


def saying(*chunks: tuple[str, bytes], **changes: Any) -> Callable[[Peer, CallReceived], Any]:
    """Make a command that writes chunks to its streams."""

    def run(peer: Peer, call: CallReceived) -> Any:
        for stream, data in chunks:
            peer.data(call, stream, data)
        return completed(**changes)

    return run


async def test_the_tools_of_the_go_programs_server_are_there_with_their_arguments(
    scripted: Start,
) -> None:
    """Each takes the same arguments, requires no other, and gives a structured result."""
    async with on_stdio(scripted(answering()).path) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        templates = (await client.list_resource_templates()).resource_templates
        resources = (await client.list_resources()).resources
    for name, arguments in ORIGINAL.items():
        schema = tools[name].input_schema
        assert arguments.keys() <= schema["properties"].keys()
        assert set(schema.get("required", [])) <= arguments.keys()
    assert [one.uri for one in resources] == ["arrakis://vms"]
    assert [one.uri_template for one in templates] == ["arrakis://vm/{vm_name}"]


async def test_each_tool_says_what_it_does_and_gives(scripted: Start) -> None:
    """All have a description, a schema of what is no picture, and tell whether they only read."""
    async with inside(scripted(answering()).path) as client:
        tools = (await client.list_tools()).tools
    assert len(tools) == 31
    for tool in tools:
        assert tool.description
        assert tool.description[0].isupper()
        assert tool.name == "screenshot" or (tool.output_schema or {})["type"] == "object"
        assert tool.annotations
        assert tool.annotations.read_only_hint is not None


async def test_each_tool_asks_the_daemon_for_what_it_was_given(scripted: Start) -> None:
    """The first call of a tool is the operation it stands for; nothing is added."""
    asked: list[tuple[str, dict[str, Any]]] = []
    async with inside(scripted(remembering(asked)).path) as client:
        for tool, arguments, method, params in ASKS:
            asked.clear()
            await use(client, tool, **arguments)
            found = [given for name, given in asked if name == method]
            assert [{k: v for k, v in one.items() if v is not None} for one in found] == [params]


async def test_machines_and_snapshots_are_described(scripted: Start) -> None:
    """What the daemon says of them comes as fields of the result."""
    forward = {"host_port": "20000", "guest_port": "8000", "description": "web"}
    vm = {**VM, "port_forwards": [forward], "egress": {"mode": "none", "allow": []}}
    script = answering(**{**EVERYTHING, "vm_info": vm, "vm_list": {"vms": [vm]}})
    async with inside(scripted(script).path) as client:
        started = await use(client, "start_sandbox", name="box")
        listed = await use(client, "list_vms")
        taken = await use(client, "snapshot", vm_name="box")
        added = await use(client, "add_port", vm_name="box", guest_port=8000)
        forks = await use(client, "fork", vm_name="box", count=2)
        removed = await use(client, "destroy_all_vms")
        stored = await use(client, "snapshots", vm_name="other")
    assert started["port_forwards"] == [
        {"guest_port": 8000, "host_port": 20000, "description": "web"}
    ]
    assert started["egress"] == {"mode": "none", "allow": []}
    assert (started["status"], started["ip"]) == ("RUNNING", "10.20.1.2/24")
    assert listed == {"vms": [started]}
    assert taken == {"snapshot_id": "before", "vm_name": "box"}
    assert added == {"guest_port": 8000, "host_port": 20000, "description": FORWARD["description"]}
    assert forks == {"names": ["left", "right"]}
    assert removed == {"removed": ["box"]}
    assert stored == {"snapshots": []}


async def test_the_tree_lists_each_snapshot_before_those_on_top_of_it(scripted: Start) -> None:
    """Siblings keep their order; one whose parent is gone is a root."""
    kinship = {"a": None, "b": "a", "c": None, "d": "b", "e": "a", "f": "gone"}
    found = [{**SNAPSHOT, "id": id_, "parent": parent} for id_, parent in kinship.items()]
    async with inside(scripted(answering(snapshot_list={"snapshots": found})).path) as client:
        tree = await use(client, "snapshot_tree")
    order = [(one["id"], one["depth"]) for one in tree["snapshots"]]
    assert order == [("a", 0), ("b", 1), ("d", 2), ("e", 1), ("c", 0), ("f", 0)]


async def test_a_failure_says_what_is_wrong_and_what_can_be_done(scripted: Start) -> None:
    """The text of the tool's error has the error's class, message, states and hint."""
    script = answering(
        vm_start=AlreadyExistsError("there is a VM 'box'", hint="choose another name"),
        vm_pause=InvalidStateError("cannot pause", state="PAUSED", required="RUNNING"),
        snapshot_create=ExhaustedError("the disk is full"),
    )
    async with on_stdio(scripted(script).path) as client:
        started = await fail(client, "start_sandbox", name="box")
        paused = await fail(client, "update_vm_state", vm_name="box", status="paused")
        taken = await fail(client, "snapshot", vm_name="box")
    assert started.endswith("AlreadyExistsError: there is a VM 'box'\nHint: choose another name")
    assert paused.endswith("InvalidStateError: cannot pause\nIt is PAUSED, and has to be RUNNING.")
    assert taken.endswith("ExhaustedError: the disk is full")


async def test_wrong_arguments_are_errors_of_the_tool(scripted: Start) -> None:
    """Nothing of them reaches the daemon, and the model is told which one it was."""
    asked: list[tuple[str, dict[str, Any]]] = []
    async with inside(scripted(remembering(asked)).path) as client:
        assert "status" in await fail(client, "update_vm_state", vm_name="box", status="gone")
        assert "vm_name" in await fail(client, "run_command", cmd="true")
        assert "name is up to 63" in await fail(client, "start_sandbox", name="../etc")
        assert "base64" in await fail(
            client, "upload_file", vm_name="box", path="a", content="%", encoding="base64"
        )
        assert "InvalidParamsError: content is not base64" in await fail(
            client, "upload_file", vm_name="box", path="a", content="é", encoding="base64"
        )
        assert "stdin has" in await fail(
            client, "exec", vm_name="box", command="cat", stdin="x" * (2**20 + 1)
        )
    assert asked == []


async def test_without_a_daemon_each_call_says_how_to_start_it(tmp_path: Any) -> None:
    """The server itself comes up; a daemon may be started later."""
    async with on_stdio(tmp_path / "none.sock") as client:
        said = await fail(client, "list_vms")
    assert "ConnectionLostError: no daemon" in said
    assert "Hint: start the daemon" in said


async def test_a_command_gives_its_output_and_how_it_ended(scripted: Start) -> None:
    """run_command mixes the streams, as the Go program's does; exec keeps them apart."""
    asked: list[tuple[str, dict[str, Any]]] = []
    run = saying(("stdout", b"out\n"), ("stderr", b"err\xff\n"), exit_code=3)
    async with inside(scripted(remembering(asked, exec_run=run)).path) as client:
        done = await use(client, "exec", vm_name="box", command="x", timeout=5, cwd="/", user="me")
    assert done == {
        "stdout": "out\n",
        "stderr": "err\N{REPLACEMENT CHARACTER}\n",
        "exit_code": 3,
        "signal": None,
        "timed_out": False,
        "duration": 0.5,
        "omitted_bytes": 0,
    }
    args = asked[0][1]["args"]
    assert (args["shell"], args["timeout"], args["cwd"], args["user"]) == ("x", 5.0, "/", "me")

    run = saying(("stdout", b"out and err\n"), exit_code=2)
    async with inside(scripted(remembering(asked, exec_run=run)).path) as client:
        done = await use(client, "run_command", vm_name="box", cmd="x")
    assert done == {"output": "out and err\n", "error": "exit status 2", "omitted_bytes": 0}
    assert asked[-1][1]["args"]["merge_output"] is True


async def test_a_command_gets_its_input(scripted: Start) -> None:
    """All of stdin arrives, and its end."""

    def run(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", peer.read_all(call)[::-1])
        return completed()

    async with inside(scripted(answering(exec_run=run)).path) as client:
        done = await use(client, "exec", vm_name="box", command="rev", stdin='{"a": 1}')
    assert done["stdout"] == '}1 :"a"{'


async def test_long_output_is_cut_in_the_middle_with_a_note(scripted: Start) -> None:
    """Beginning and end are there, and how much is not."""
    chunks = [("stdout", b"first"), *[("stdout", b"x" * 100_000)] * 30, ("stdout", b"last")]
    async with inside(scripted(answering(exec_run=saying(*chunks))).path) as client:
        done = await use(client, "run_command", vm_name="box", cmd="x")
        small = await use(client, "exec", vm_name="box", command="x", max_bytes=1024)
    assert done["output"].startswith("first")
    assert done["output"].endswith("last")
    assert done["omitted_bytes"] == 3_000_009 - 65_536
    assert f"{done['omitted_bytes']} of 3000009 bytes left out here" in done["output"]
    assert len(done["output"]) < 66_000
    assert small["omitted_bytes"] == 3_000_009 - 1024


async def test_files_are_written_read_and_listed(scripted: Start) -> None:
    """Text stays text and bytes are base64, in both directions."""
    guest = Guest()
    guest.add("/d/binary", b"\xff\x00")
    guest.add("/d/empty", b"")
    data = base64.b64encode(b"\xff\x00").decode()
    async with inside(scripted(guest.script).path) as client:
        await use(client, "upload_file", vm_name="box", path="a.json", content='{"a": 1}')
        await use(client, "upload_file", vm_name="box", path="b", content=data, encoding="base64")
        text = await use(client, "download_file", vm_name="box", path="a.json")
        binary = await use(client, "download_file", vm_name="box", path="/d/binary")
        listing = await use(client, "list_files", vm_name="box", path="/d")
        missing = await fail(client, "download_file", vm_name="box", path="none")
    assert guest.files["a.json"] == b'{"a": 1}'
    assert guest.files["b"] == b"\xff\x00"
    assert (text["content"], text["encoding"]) == ('{"a": 1}', "utf-8")
    assert (text["size"], text["next_offset"]) == (8, None)
    assert (binary["content"], binary["encoding"]) == (data, "base64")
    assert [(one["name"], one["size"], one["mode"]) for one in listing["entries"]] == [
        ("binary", 2, "644"),
        ("empty", 0, "644"),
    ]
    assert "FileOperationError: none: No such file or directory" in missing


async def test_a_long_file_comes_in_parts_that_cut_no_character(scripted: Start) -> None:
    """Each part says where the next begins, and together they are the file."""
    guest = Guest()
    guest.files["long"] = "ä€😀x".encode() * 20
    parts = []
    offset: int | None = 0
    async with inside(scripted(guest.script).path) as client:
        while offset is not None:
            part = await use(
                client, "download_file", vm_name="box", path="long", offset=offset, max_bytes=64
            )
            assert part["encoding"] == "utf-8"
            parts.append(part["content"])
            offset = part["next_offset"]
    assert len(parts) > 3
    assert "".join(parts) == "ä€😀x" * 20


async def test_a_long_directory_is_cut_with_a_note(scripted: Start) -> None:
    """No more than 500 entries are given."""
    entries = [stat(f"{number:04}") for number in range(600)]
    script = answering(file_list={"entries": entries, "more": False})
    async with inside(scripted(script).path) as client:
        listing = await use(client, "list_files", vm_name="box")
    assert len(listing["entries"]) == 500
    assert "more than these 500" in listing["note"]


async def test_resources_describe_machines(scripted: Start) -> None:
    """One has all of them, another each by its name; a name that is none is invalid."""

    def info(_: Peer, call: CallReceived) -> Any:
        name = call.params["name"]
        return VM if name == "box" else NotFoundError(f"there is no VM {name!r}", hint="list them")

    script = answering(vm_list={"vms": [VM]}, vm_info=info)
    async with on_stdio(scripted(script).path) as client:
        everything = await read(client, "arrakis://vms")
        one = await read(client, "arrakis://vm/box")
        with pytest.raises(MCPError, match="there is no VM 'none'\nHint: list them") as caught:
            await client.read_resource("arrakis://vm/none")
    assert everything == {"vms": [one]}
    assert one["name"] == "box"
    assert caught.value.error.code == mcp_types.INVALID_PARAMS


async def test_the_progress_of_a_start_is_told(scripted: Start) -> None:
    """What the daemon says it does comes as progress that only grows."""

    def start(peer: Peer, call: CallReceived) -> Any:
        peer.note(call, "call.progress", text="booting", step=1, total=3)
        peer.note(call, "call.progress", text="booting", step=1, total=3)
        return VM

    told: list[tuple[float, str | None]] = []

    async def progress(value: float, total: float | None, message: str | None) -> None:
        told.append((value, message))

    async with on_stdio(scripted(answering(vm_start=start, vm_info=VM)).path) as client:
        result = await client.call_tool(
            "start_sandbox", {"name": "box"}, progress_callback=progress
        )
    assert not result.is_error, text_of(result)
    assert told == [(1.0, "booting"), (2.0, "booting")]


async def test_a_guest_cannot_make_the_server_fail(scripted: Start) -> None:
    """Control characters in a message are passed on as text."""
    error = FileOperationError("\x1b]0;title\x07 \x00", errno=2)
    async with on_stdio(scripted(answering(file_read=error)).path) as client:
        said = await fail(client, "download_file", vm_name="box", path="a")
        assert "FileOperationError" in said
        assert "ConnectionLostError" not in said


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Grüße 😀", "Grüße 😀"),
        (os.fsdecode(b"caf\xe9"), "caf\N{REPLACEMENT CHARACTER}"),
        ("half a pair: \ud83d", "half a pair: \\ud83d"),
        ("\udcff\ud83d", "\\udcff\\ud83d"),
    ],
)
def test_text_becomes_text_that_can_be_encoded(text: str, clean: str) -> None:
    """What is Unicode stays, what is not is replaced or escaped."""
    assert as_unicode(text) == clean
    clean.encode()


async def test_what_is_not_utf_8_is_replaced_wherever_it_comes_from(scripted: Start) -> None:
    """Names, commands, consoles, errors and progress of a guest are told with its bad bytes."""
    bad, good = os.fsdecode(b"caf\xe9"), "caf\N{REPLACEMENT CHARACTER}"
    vm = {**VM, "failure": {"reason": bad, "console": [bad]}}

    def start(peer: Peer, call: CallReceived) -> Any:
        peer.note(call, "call.progress", text=bad, step=1, total=3)
        return vm

    script = answering(
        vm_start=start,
        vm_info=vm,
        vm_list={"vms": [vm]},
        vm_pause=InvalidStateError(bad, hint=bad, state=bad, required=bad),
        file_list={"entries": [stat(bad, "symlink", target=bad)], "more": False},
        file_read=FileOperationError(f"{bad}: No such file or directory", errno=2),
        snapshot_list={"snapshots": [{**SNAPSHOT, "label": bad}]},
        snapshot_diff={
            "files": [{"path": bad, "change": "added", "kind": "file", "size": 1}],
            "processes": [{"pid": 7, "change": "added", "command": bad}],
            "complete": True,
        },
        port_list={"ports": [{**FORWARD, "description": bad}]},
    )
    told: list[str | None] = []

    async def progress(_: float, __: float | None, message: str | None) -> None:
        told.append(message)

    with trio.fail_after(60):  # a server that has died answers nothing
        async with on_stdio(scripted(script).path) as client:
            started = await client.call_tool(
                "start_sandbox", {"name": "box"}, progress_callback=progress
            )
            listing = await use(client, "list_files", vm_name="box")
            missing = await fail(client, "download_file", vm_name="box", path="a")
            paused = await fail(client, "update_vm_state", vm_name="box", status="paused")
            stored = await use(client, "snapshots")
            difference = await use(client, "snapshot_diff", before="a", after="b")
            ports = await use(client, "ports", vm_name="box")
            one = await read(client, "arrakis://vm/box")
            everything = await read(client, "arrakis://vms")
    assert not started.is_error, text_of(started)
    assert told == [good]
    assert [(entry["name"], entry["target"]) for entry in listing["entries"]] == [(good, good)]
    assert missing.endswith(f"FileOperationError: {good}: No such file or directory")
    assert paused.endswith(f"{good}\nIt is {good}, and has to be {good}.\nHint: {good}")
    assert stored["snapshots"][0]["label"] == good
    assert difference["files"][0]["path"] == difference["processes"][0]["command"] == good
    assert ports["ports"][0]["description"] == good
    assert one["failure"] == {"reason": good, "console": [good]}
    assert everything == {"vms": [one]}


async def test_a_defect_is_told_and_logged(
    scripted: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception nobody expected is no silent failure, and its traceback is in the log."""
    monkeypatch.setattr("arrakis.manager.SandboxManager.health", lambda _: 1 // 0)
    async with inside(scripted(answering()).path) as client:
        said = await fail(client, "health")
    assert "InternalError: ZeroDivisionError: integer division" in said
    [record] = caplog.records
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError
