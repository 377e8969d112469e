"""A stand-in for cloud-hypervisor."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

from api_tables import CLOUD_HYPERVISOR, problem
from fake_vmm import FakeVmm, RefusedError, map_file


class FakeCloudHypervisor(FakeVmm):
    table = CLOUD_HYPERVISOR
    prefix = "/api/v1"

    def serve(self) -> None:
        self.api_socket.with_name(f"{self.api_socket.name}.lock").touch()
        super().serve()

    def refusal(self, message: str) -> Any:
        return ["Error from API", message]

    def get_vmm_ping(self, _: dict[str, Any]) -> Any:
        return {"version": self.settings["version"], "pid": os.getpid()}

    def put_vm_create(self, config: dict[str, Any]) -> None:
        self.require("new", status=500)
        self._take_config(config)
        self.phase = "created"

    def _take_config(self, config: dict[str, Any]) -> None:
        payload = config["payload"]
        if not Path(payload.get("kernel", "/nonexistent")).is_file():
            raise RefusedError(500, "the kernel is not there")
        for disk in config["disks"]:
            if disk.get("image_type") != "Raw":
                raise RefusedError(500, "sector 0 of this disk could not be written")
            with Path(disk["path"]).open("rb" if disk.get("readonly") else "r+b"):
                pass
        self.config = config

    def put_vm_add_net(self, nic: dict[str, Any]) -> None:
        self.require("created", status=404)
        self._take_taps(1)
        self.config.setdefault("net", []).append({**nic, "fds": [-1]})

    def _take_taps(self, number: int) -> None:
        if len(self.fds) != number:
            raise RefusedError(400, f"{len(self.fds)} descriptors came along, not {number}")

    def put_vm_boot(self, _: dict[str, Any]) -> None:
        self.require("created", status=404)
        memory = self.config["memory"]
        if zones := memory.get("zones"):
            [zone] = zones
            ram = map_file(Path(zone["file"]), zone["size"], shared=zone["shared"])
        else:
            ram = mmap.mmap(-1, memory["size"])
        self._start(ram, booting=True)
        self.set_running(True)

    def _start(self, ram: mmap.mmap, *, booting: bool) -> None:
        disk, vsock = Path(self.config["disks"][1]["path"]), Path(self.config["vsock"]["socket"])
        self.start_guest(ram, disk, vsock, booting=booting)

    def put_vm_pause(self, _: dict[str, Any]) -> None:
        self.require("running", status=405)
        self.set_running(False)

    def put_vm_resume(self, _: dict[str, Any]) -> None:
        self.require("paused", status=405)
        self.set_running(True)

    def put_vm_snapshot(self, wish: dict[str, Any]) -> None:
        self.require("paused", status=405)
        assert self.guest is not None
        directory = Path(wish["destination_url"].removeprefix("file://"))
        zones = self.config["memory"].get("zones", [])
        is_shared_file = any(zone.get("shared") and zone.get("file") for zone in zones)
        size = len(self.guest.memory)
        if any(directory.iterdir()):
            raise RefusedError(500, "File exists")
        (directory / "config.json").write_text(json.dumps(self.config))
        mapping = {"gpa": 0, "size": size, "zone_id": "ram", "slot": 0}
        if any(zone.get("file") for zone in zones):
            mapping["file_offset"] = 0
        ranges = [] if is_shared_file else [{"gpa": 0, "length": size}]
        memory = {"memory_ranges": {"data": ranges}, "guest_ram_mappings": [mapping]}
        state = {"devices": self.settings["version"]}
        if self.settings.get("foreign_state"):
            state["memory"] = memory
        else:
            part = {"snapshot_data": {"state": json.dumps(memory)}}
            state["snapshots"] = {"memory-manager": part}
        (directory / "state.json").write_text(json.dumps(state))
        if ranges:
            (directory / "memory-ranges").write_bytes(self.guest.memory)

    def put_vm_restore(self, wish: dict[str, Any]) -> None:
        self.require("new", status=404)
        directory = Path(wish["source_url"].removeprefix("file://"))
        config = json.loads((directory / "config.json").read_text())
        if wrong := problem(CLOUD_HYPERVISOR["PUT /vm.create"], config):
            raise RefusedError(400, f"config.json: {wrong}")
        self._take_config(config)
        nets, sent = config.get("net", []), wish.get("net_fds", [])
        if [net["id"] for net in nets] != [net["id"] for net in sent]:
            raise RefusedError(400, "a network card without its tap")
        self._take_taps(sum(net["num_fds"] for net in sent))
        state = json.loads((directory / "state.json").read_text())
        if "memory" in state:
            memory = state["memory"]
        else:
            memory = json.loads(state["snapshots"]["memory-manager"]["snapshot_data"]["state"])
        [mapping] = memory["guest_ram_mappings"]
        zones = config["memory"].get("zones", [{}])
        if file := zones[0].get("file"):
            if "file_offset" not in mapping:
                raise RefusedError(500, "no offset in the file")
            ram = map_file(Path(file), mapping["size"], shared=zones[0]["shared"])
        else:
            ram = mmap.mmap(-1, mapping["size"])
        for one in memory["memory_ranges"]["data"]:
            ram[one["gpa"] : one["gpa"] + one["length"]] = (
                directory / "memory-ranges"
            ).read_bytes()
        self._start(ram, booting=False)
        self.set_running(False)
