"""The command line against a scripted daemon that remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scripted_daemon import HEALTH, VM, Peer, Script, Server, answering

from arrakis.cli.main import run
from arrakis_rpc.connection import CallReceived

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
    "vm_resume": VM,
    "vm_destroy": {},
    "vm_destroy_all": {},
    "vm_fork": {"vms": [{**VM, "name": "left"}, {**VM, "name": "right"}]},
    "snapshot_create": SNAPSHOT,
    "snapshot_list": {"snapshots": [SNAPSHOT]},
    "snapshot_info": SNAPSHOT,
    "snapshot_delete": {},
    "image_list": {"images": [IMAGE]},
    "image_build": IMAGE,
    "image_delete": {},
    "template_delete": {},
    "template_list": {"templates": [TEMPLATE]},
    "template_build": TEMPLATE,
}


class Cli:
    """The command line against a scripted daemon that remembers what it was asked."""

    def __init__(self, scripted: Start, capfd: pytest.CaptureFixture[str]) -> None:
        self._scripted = scripted
        self._capfd = capfd
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.socket = ""

    def serve(self, **changes: Any) -> None:
        def remembering(result: Any) -> Any:
            def answer(peer: Peer, call: CallReceived) -> Any:
                self.asked.append((call.method, call.params))
                return result(peer, call) if callable(result) else result

            return answer

        answers = {**EVERYTHING, **changes}
        script = answering(**{name: remembering(result) for name, result in answers.items()})
        self.socket = str(self._scripted(script).path)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = run(["--socket", self.socket, *arguments])
        return (code, *self._capfd.readouterr())


@pytest.fixture
def arrakis(scripted: Start, capfd: pytest.CaptureFixture[str]) -> Cli:
    cli = Cli(scripted, capfd)
    cli.serve()
    return cli
