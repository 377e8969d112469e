"""The client of the Go program, py-arrakis 2.0.0 from PyPI, as it is."""

from __future__ import annotations

import re
import time

import pytest
import requests
from http_daemon import Web
from py_arrakis import Sandbox, SandboxManager

pytestmark = pytest.mark.vm


def test_the_program_in_its_readme_works(web: Web) -> None:
    """List, start, run, snapshot, destroy, restore: as the README shows, in that order."""
    manager = SandboxManager(web.url)
    assert manager.list_all() == []
    sandbox = manager.start_sandbox("my-sandbox")
    result = sandbox.run_cmd("echo hello world")
    assert result == {"output": "hello world\n", "error": ""}
    snapshot_id = sandbox.snapshot("snapshot-v1")
    assert snapshot_id == "snapshot-v1"
    sandbox.destroy()
    restored = manager.restore("my-vm", snapshot_id)
    assert [one.name for one in manager.list_all()] == ["my-vm"]
    restored.destroy()
    assert manager.list_all() == []


def test_a_snapshot_takes_files_and_processes_back(web: Web) -> None:
    """What was there at a snapshot is there after a restore, and what came later is not."""
    manager = SandboxManager(web.url)
    with manager.start_sandbox("origin") as sandbox:
        sandbox.upload_files([{"path": "kept.txt", "content": "kept"}])
        sandbox.run_cmd("echo $$ > pid; exec sleep 1000", blocking=False)
        while sandbox.run_cmd("cat /proc/$(cat pid)/comm")["output"] != "sleep\n":
            time.sleep(0.05)
        snapshot_id = sandbox.snapshot()
        assert re.fullmatch(r"snapshot-origin-\d{8}-\d{6}", snapshot_id)
        sandbox.run_cmd("rm kept.txt; touch later.txt")
    with manager.restore("again", snapshot_id) as again:
        listed = again.run_cmd("cat kept.txt; ls; cat /proc/$(cat pid)/comm")["output"]
        assert listed.split() == ["keptkept.txt", "pid", "sleep"]


def test_info_has_the_shape_of_the_go_program(web: Web) -> None:
    """Status, address with its prefix, tap, and forwarded ports as text."""
    with SandboxManager(web.url).start_sandbox("shaped") as sandbox:
        info = sandbox.info()
        assert (info["name"], info["status"]) == ("shaped", "RUNNING")
        assert re.fullmatch(r"10\.20\.1\.\d+/24", info["ip"])
        assert info["tap_device_name"]
        forwards = info["port_forwards"]
        assert [one["guest_port"] for one in forwards] == ["5901", *map(str, range(5736, 5741))]
        assert [one["description"] for one in forwards] == ["gui", *["code"] * 5]
        assert all(one["host_port"].isdecimal() for one in forwards)


def test_commands_fail_without_failing_the_request(web: Web) -> None:
    """A command's output holds both streams as they came, and `error` how it ended."""
    with SandboxManager(web.url).start_sandbox("commands") as sandbox:
        assert sandbox.run_cmd("pwd")["output"] == "/tmp/server_files\n"
        failed = sandbox.run_cmd("echo a; echo b >&2; echo c; exit 3")
        assert failed == {"output": "a\nb\nc\n", "error": "exit status 3"}
        assert sandbox.run_cmd("kill -KILL $$")["error"] == "signal: killed"
        began = time.monotonic()
        started = sandbox.run_cmd("sleep 30; touch never", blocking=False)
        assert started["output"] == "Command 'sleep 30; touch never' started in background"
        assert time.monotonic() - began < 30


def test_files_are_relative_to_the_work_directory(web: Web) -> None:
    """Relative paths are below /tmp/server_files, in both directions; absolute ones absolute."""
    with SandboxManager(web.url).start_sandbox("files") as sandbox:
        sandbox.upload_files(
            [
                {"path": "a/b.txt", "content": "größe\n"},
                {"path": "/home/elara/c.txt", "content": "c"},
            ]
        )
        shown = sandbox.run_cmd("cat /tmp/server_files/a/b.txt /home/elara/c.txt")
        assert shown["output"] == "größe\nc"
        found = sandbox.download_files(["a/b.txt", "/home/elara/c.txt", "missing"])
        assert [one.get("content") for one in found] == ["größe\n", "c", None]
        assert "No such file" in found[2]["error"]


def test_states_change_as_asked(web: Web) -> None:
    """Paused, resumed (which only the API has) and stopped; a stopped VM stays listed."""
    manager = SandboxManager(web.url)
    sandbox = manager.start_sandbox("stateful")
    seen = [sandbox.info()["status"]]
    sandbox.update_state("paused")
    seen.append(sandbox.info()["status"])
    with pytest.raises(requests.HTTPError) as refused:
        sandbox.run_cmd("true")
    assert refused.value.response.status_code == 409
    assert web.ask("PATCH", "/v1/vms/stateful", {"status": "resume"}).json["success"]
    seen.append(sandbox.info()["status"])
    sandbox.update_state("stopped")
    seen.append(sandbox.info()["status"])
    assert seen == ["RUNNING", "PAUSED", "RUNNING", "STOPPED"]
    manager.destroy_all()
    assert manager.list_all() == []


def test_an_error_is_an_http_error_with_a_message(web: Web) -> None:
    """Names that do not exist, and names that do, are refused with a status and a message."""
    manager = SandboxManager(web.url)
    for attempt in (
        lambda: Sandbox(manager._api, "nobody").info(),
        lambda: Sandbox(manager._api, "nobody").run_cmd("true"),
        lambda: manager.restore("nobody", "no-such-snapshot"),
    ):
        with pytest.raises(requests.HTTPError) as missing:
            attempt()
        assert missing.value.response.status_code == 404
        assert missing.value.response.json()["error"]["message"]
    with manager.start_sandbox("taken"), pytest.raises(requests.HTTPError) as taken:
        manager.start_sandbox("taken")
    assert taken.value.response.status_code == 409


def test_a_wrong_token_in_the_url_is_refused(web: Web) -> None:
    """The password of the URL is the token, and only a good one is let in."""
    wrong = SandboxManager(f"http://x:wrong@127.0.0.1:{web.port}")
    with pytest.raises(requests.HTTPError) as refused:
        wrong.list_all()
    assert refused.value.response.status_code == 401
