"""The command line against a scripted daemon that remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scripted_daemon import HEALTH, VM, Peer, Script, Server, answering

from arrakis.cli.main import run
from arrakis_rpc.connection import CallReceived
from arrakis_rpc.errors import NotFoundError

Start = Callable[[Script], Server]

SNAPSHOT = {
    "id": "before",
    "vm": "box",
    "template": "t",
    "parent": None,
    "label": "",
    "created": 1.0,
    "bytes": 2048,
    "memory_mib": 512,
    "vcpus": 1,
    "changed_pages": 3,
    "pause": 0.0123,
}
DIFFERENCE = {
    "files": [
        {"path": "/a", "change": "added", "kind": "file", "size": 2048},
        {"path": "/b", "change": "removed", "kind": "directory", "size": 0},
    ],
    "processes": [{"pid": 7, "change": "removed", "command": "sleep 9"}],
    "complete": True,
}
IMAGE = {
    "name": "mine",
    "digest": "sha256:" + "ab" * 32,
    "bytes": 9,
    "created": 1.0,
    "parent": None,
}
TEMPLATE = {
    "id": "t",
    "image": "base",
    "image_digest": "ab",
    "vcpus": 1,
    "memory_mib": 512,
    "disk_mib": 1024,
    "vmm": "qemu",
    "accelerator": "tcg",
    "created": 1.0,
    "boot": 65.0,
    "bytes": 9,
}
FORWARD = {"guest_port": 8000, "host_port": 20000, "description": "web", "published": True}
GUI = {"guest_port": 5901, "host_port": 20001, "description": "gui", "published": False}
INFO = {
    "daemon": "0.1.0",
    "pid": 7,
    "state_dir": "/var/lib/arrakis",
    "vmm": "qemu",
    "accelerator": "kvm",
    "vcpus": 8,
    "memory_mib": 2048,
    "default_vcpus": 4,
    "default_memory_mib": 512,
    "default_disk_mib": 1024,
}
EVERYTHING = {
    "system_health": HEALTH,
    "system_info": INFO,
    "system_doctor": {"checks": [{"name": "qemu", "ok": True, "detail": "there", "fix": None}]},
    "vm_start": VM,
    "vm_list": {"vms": [VM]},
    "vm_info": VM,
    "vm_stop": VM,
    "vm_pause": VM,
    "vm_suspend": VM,
    "vm_set_limits": VM,
    "vm_resume": VM,
    "vm_destroy": {},
    "vm_destroy_all": {},
    "vm_fork": {"vms": [{**VM, "name": "left"}, {**VM, "name": "right"}]},
    "vm_rollback": VM,
    "vm_rename": VM,
    "snapshot_create": SNAPSHOT,
    "snapshot_diff": DIFFERENCE,
    "snapshot_export": {},
    "snapshot_import": {"id": "before", "new": ["before"], "present": []},
    "snapshot_list": {"snapshots": [SNAPSHOT]},
    "snapshot_info": SNAPSHOT,
    "snapshot_delete": {},
    "port_list": {"ports": [FORWARD, GUI]},
    "port_add": FORWARD,
    "port_remove": {},
    "egress_set": {},
    "desktop_scroll": {},
    "desktop_type": {},
    "desktop_key": {},
    # Only some images have it; those who run anything else say what comes of it.
    "exec_run": NotFoundError("there is no program 'desktop-password'"),
    "image_list": {"images": [IMAGE]},
    "image_build": IMAGE,
    "image_delete": {},
    "image_prune": {"images": [IMAGE]},
    "template_delete": {},
    "template_list": {"templates": [TEMPLATE]},
    "template_build": TEMPLATE,
    "token_create": {"name": "laptop", "token": "ark_secret"},
    "token_list": {"tokens": [{"name": "laptop", "created": 1.0, "used": None}]},
    "token_revoke": {},
}


class Cli:
    """The command line against a scripted daemon that remembers what it was asked."""

    def __init__(self, scripted: Start, capfd: pytest.CaptureFixture[str]) -> None:
        self._scripted = scripted
        self._capfd = capfd
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._options: list[str] = []

    def serve(self, **changes: Any) -> None:
        def remembering(result: Any) -> Any:
            def answer(peer: Peer, call: CallReceived) -> Any:
                self.asked.append((call.method, call.params))
                return result(peer, call) if callable(result) else result

            return answer

        answers = {**EVERYTHING, **changes}
        script = answering(**{name: remembering(result) for name, result in answers.items()})
        self._options = self._scripted(script).options

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = run([*self._options, *arguments])
        return (code, *self._capfd.readouterr())

    def asks(
        self, line: str, method: str, params: dict[str, Any], output: str | None = None
    ) -> None:
        """Assert what a command line asks first, that it succeeds, and what it prints, if given."""
        code, out, err = self(*line.split())
        assert (code, err) == (0, "")
        assert self.asked[0] == (method, params)
        assert output is None or out == output


@pytest.fixture(params=["unix", "http"])
def arrakis(
    start_scripted: Callable[[Script, str], Server],
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Cli:
    cli = Cli(lambda script: start_scripted(script, request.param), capfd)
    cli.serve()
    return cli
