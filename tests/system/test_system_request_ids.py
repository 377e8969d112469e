"""One call's way through the daemon, as its log tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_daemon import Daemon, running_daemon, wait_until, write_config

from arrakis import NotFoundError, SandboxManager

pytestmark = pytest.mark.vm


def log_of(daemon: Daemon) -> list[dict[str, Any]]:
    """Read the daemon's log, every line of which is JSON."""
    return [json.loads(line) for line in daemon.log_text().split("\n")[:-1]]


def test_a_start_from_the_call_to_the_vmm(template_state: Path) -> None:
    """Call, hypervisor and its commands have one id; what the VM does later has none of it."""
    config = write_config(template_state, 'log_format = "json"\nlog_level = "debug"')
    with (
        running_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        first = manager.start_sandbox("first")
        second = manager.start_sandbox("second")
        first.pause()
        second.destroy()
        first.destroy()
        wait_until(lambda: daemon.log_text().count("VM ended") == 2, 5)
        lines = log_of(daemon)
    starts = [line for line in lines if line["event"] == "call" and line["method"] == "vm.start"]
    assert [line["vm"] for line in starts] == ["first", "second"]
    assert starts[0]["request_id"] != starts[1]["request_id"]
    for start in starts:
        own = [line for line in lines if line.get("request_id") == start["request_id"]]
        assert [line["event"] for line in own if line["level"] == "info"] == [
            *("call", "VMM started", "VMM taken", "VM started")
        ]
        commands = [line["command"] for line in own if line["event"] == "VMM command"]
        assert commands[0] == "qmp_capabilities"
        assert "migrate-incoming" in commands
        assert {line["vm"] for line in own} == {start["vm"]}
    (pause,) = [line for line in lines if line.get("method") == "vm.pause"]
    stop = [line for line in lines if line.get("command") == "stop"]
    assert [(line["request_id"], line["vm"]) for line in stop] == [(pause["request_id"], "first")]
    ended = [line for line in lines if line["event"] == "VM ended"]
    assert {line["vm"] for line in ended} == {"first", "second"}
    assert not any("request_id" in line for line in ended)


def test_the_id_in_an_error_is_in_the_log(daemon: Daemon, manager: SandboxManager) -> None:
    """Who quotes what the error says leads to the line of that very call."""
    with pytest.raises(NotFoundError) as caught:
        manager.get("absent").pause()
    request_id = caught.value.detail["request_id"]
    lines = [line for line in log_of(daemon) if line.get("request_id") == request_id]
    assert [line["event"] for line in lines][-1] == "call refused"
    assert {line["vm"] for line in lines} == {"absent"}
