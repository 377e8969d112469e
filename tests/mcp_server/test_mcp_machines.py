"""All tools, over both transports, on real machines."""

from __future__ import annotations

import pytest
import trio
from mcp import Client
from mcp_harness import fail, http_server, on_stdio, read, text_of, use
from real_daemon import Daemon

from arrakis import SandboxManager

pytestmark = pytest.mark.vm


async def test_an_agent_goes_back_in_time(manager: SandboxManager, daemon: Daemon) -> None:
    """It works, takes a snapshot, wrecks its machine, restores it, and tries three ways at once."""
    async with on_stdio(daemon.socket) as client:
        started = await use(client, "start_sandbox", name="agent")
        assert (started["name"], started["status"]) == ("agent", "RUNNING")
        assert await read(client, "arrakis://vm/agent") == started
        assert (await read(client, "arrakis://vms"))["vms"] == [started]

        written = await use(
            client, "upload_file", vm_name="agent", path="notes/a.txt", content="good\n"
        )
        assert written == {"path": "notes/a.txt", "size": 5}
        said = await use(client, "run_command", vm_name="agent", cmd="cat notes/a.txt; exit 3")
        assert said == {"output": "good\n", "error": "exit status 3", "omitted_bytes": 0}

        taken = await use(client, "snapshot", vm_name="agent", snapshot_id="before")
        assert taken["snapshot_id"] == "before"
        await use(client, "run_command", vm_name="agent", cmd="rm -r notes")
        assert "No such file" in await fail(
            client, "download_file", vm_name="agent", path="notes/a.txt"
        )

        restored = await use(client, "restore_snapshot", vm_name="again", snapshot_id="before")
        assert restored["snapshot"] == "before"
        content = await use(client, "download_file", vm_name="again", path="notes/a.txt")
        assert (content["content"], content["next_offset"]) == ("good\n", None)
        listing = await use(client, "list_files", vm_name="again", path="notes")
        assert [(one["name"], one["size"]) for one in listing["entries"]] == [("a.txt", 5)]

        await use(client, "run_command", vm_name="again", cmd="echo more >notes/b.txt")
        later = await use(client, "snapshot", vm_name="again")
        changed = await use(client, "snapshot_diff", before="before", after=later["snapshot_id"])
        added = [one["path"] for one in changed["files"] if one["change"] == "added"]
        assert "/tmp/server_files/notes/b.txt" in added
        tree = await use(client, "snapshot_tree")
        ids = [(one["id"], one["depth"]) for one in tree["snapshots"]]
        assert ids == [("before", 0), (later["snapshot_id"], 1)]
        forks = await use(client, "fork", vm_name="again", names=["left", "right"])
        for name in forks["names"]:
            found = await use(client, "exec", vm_name=name, command="hostname; cat notes/a.txt")
            assert found["stdout"] == f"{name}\ngood\n"

        await use(client, "update_vm_state", vm_name="left", status="paused")
        refused = await fail(client, "run_command", vm_name="left", cmd="true")
        assert "It is PAUSED, and has to be RUNNING." in refused
        assert (await use(client, "health"))["vms"]["PAUSED"] == 1
        await use(client, "update_vm_state", vm_name="left", status="running")
        renamed = await use(client, "rename_vm", vm_name="left", new_name="first")
        assert (renamed["name"], renamed["status"]) == ("first", "RUNNING")
        stopped = await use(client, "update_vm_state", vm_name="right", status="stopped")
        assert stopped["status"] == "STOPPED"

        await use(client, "delete_snapshot", snapshot_id="before")
        remaining = await use(client, "snapshots", vm_name="again")
        assert [one["id"] for one in remaining["snapshots"]] == [later["snapshot_id"]]
        assert (await use(client, "destroy_vm", vm_name="agent"))["removed"] == ["agent"]
        gone = await use(client, "destroy_all_vms")
        assert gone["removed"] == ["again", "first", "right"]
        assert "Hint" in await fail(client, "vm_info", vm_name="agent")
    assert manager.list_all() == []


async def test_commands_have_input_limits_and_bounds(
    manager: SandboxManager, daemon: Daemon
) -> None:
    """A program comes in by stdin; what runs too long is killed; what says too much is cut."""
    with manager.start_sandbox("box"), http_server(daemon.socket) as url:
        async with Client(url) as client:
            done = await use(
                client, "exec", vm_name="box", command="python3 -", stdin="print(6 * 7)\n"
            )
            assert (done["stdout"], done["exit_code"]) == ("42\n", 0)
            slow = await use(
                client, "exec", vm_name="box", command="echo early; sleep 60", timeout=10
            )
            assert (slow["stdout"], slow["timed_out"]) == ("early\n", True)
            long = await use(client, "run_command", vm_name="box", cmd="seq 100000")
            assert long["output"].startswith("1\n2\n")
            assert long["output"].endswith("100000\n")
            assert long["omitted_bytes"] > 500_000
            described = await use(client, "health", vm_name="box")
            assert described["vm"]["memory_total"] > 2**20

            added = await use(client, "add_port", vm_name="box", guest_port=8000)
            assert added in (await use(client, "ports", vm_name="box"))["ports"]
            await use(client, "remove_port", vm_name="box", host_port=added["host_port"])
            assert added not in (await use(client, "ports", vm_name="box"))["ports"]


async def test_a_cancelled_command_is_killed_in_the_guest(
    manager: SandboxManager, daemon: Daemon
) -> None:
    """The machine stays, its process goes."""
    with manager.start_sandbox("box") as box:
        async with on_stdio(daemon.socket) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    client.call_tool, "run_command", {"vm_name": "box", "cmd": "exec sleep 4321"}
                )
                while not box.run("pgrep -x -f 'sleep 4321'").ok:
                    await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
            with trio.fail_after(30):
                while box.run("pgrep -x -f 'sleep 4321'").ok:
                    await trio.sleep(0.1)
            assert (await use(client, "run_command", vm_name="box", cmd="echo on"))["error"] == ""


async def test_a_cancelled_start_leaves_no_machine(manager: SandboxManager, daemon: Daemon) -> None:
    """Its name is free again; the fixture checks that nothing else of it is left."""
    async with on_stdio(daemon.socket) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call_tool, "start_sandbox", {"name": "box"})
            while not manager.describe_all():
                await trio.sleep(0.002)
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            while manager.describe_all():
                await trio.sleep(0.05)
        result = await client.call_tool("start_sandbox", {"name": "box"})
        assert not result.is_error, text_of(result)
