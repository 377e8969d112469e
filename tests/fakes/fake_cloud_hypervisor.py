"""A stand-in for cloud-hypervisor."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

from api_tables import CLOUD_HYPERVISOR, problem
from fake_vmm import FakeVmm, RefusedError, map_file

# What the real one refuses because it does not fit its state is an "internal error", too.
REFUSED = 500
HIGH = 2**32  # where RAM goes on behind the hole for devices
MAPPING = {
    "slot!": int,
    "gpa!": int,
    "size!": int,
    "zone_id!": str,
    "virtio_mem!": bool,
    "file_offset!": int,
}
MEMORY = {
    "memory_ranges!": {"data!": [{"gpa!": int, "length!": int}]},
    "guest_ram_mappings!": [MAPPING],
}


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
        self.require("new", status=REFUSED)
        self.config = config
        self.phase = "created"

    def put_vm_add_net(self, nic: dict[str, Any]) -> None:
        self.require("created", status=REFUSED)
        self._take_taps(1)
        self.config.setdefault("net", []).append({**nic, "fds": [-1]})

    def _take_taps(self, number: int) -> None:
        if len(self.fds) != number:
            raise RefusedError(400, f"{len(self.fds)} descriptors came along, not {number}")

    def put_vm_boot(self, _: dict[str, Any]) -> None:
        self.require("created", status=REFUSED)
        if not Path(self.config["payload"].get("kernel", "/nonexistent")).is_file():
            raise RefusedError(REFUSED, "the kernel is not there")
        memory = self.config["memory"]
        if zones := memory.get("zones"):
            [zone] = zones
            ram = map_file(Path(zone["file"]), zone["size"], shared=zone["shared"])
        else:
            ram = mmap.mmap(-1, memory["size"])
        self._start(ram, booting=True)
        self.set_running(True)

    def _start(self, ram: mmap.mmap, *, booting: bool) -> None:
        for one in self.config["disks"]:
            lock(one)
        disk, vsock = Path(self.config["disks"][1]["path"]), Path(self.config["vsock"]["socket"])
        self.start_guest(ram, disk, vsock, booting=booting)

    def put_vm_pause(self, _: dict[str, Any]) -> None:
        self.require("running", status=REFUSED)
        self.set_running(False)

    def put_vm_resume(self, _: dict[str, Any]) -> None:
        self.require("paused", status=REFUSED)
        self.set_running(True)

    def put_vm_snapshot(self, wish: dict[str, Any]) -> None:
        self.require("paused", status=REFUSED)
        assert self.guest is not None
        directory = Path(wish["destination_url"].removeprefix("file://"))
        self._check_sandbox(directory)
        if any(directory.iterdir()):
            raise RefusedError(REFUSED, "File exists")
        time.sleep(float(self.settings.get("writes_for", 0)))
        zones = self.config["memory"].get("zones", [])
        (directory / "config.json").write_text(json.dumps(self.config))
        has_file = any(zone.get("file") for zone in zones)
        halves = halves_of(len(self.guest.memory))
        mappings = [
            {
                "slot": slot,
                "gpa": gpa,
                "size": size,
                "zone_id": zones[0]["id"] if zones else "mem0",
                "virtio_mem": False,
                "file_offset": offset if has_file else 0,
            }
            for slot, (gpa, offset, size) in enumerate(halves)
        ]
        ranges = [{"gpa": gpa, "length": size} for gpa, _, size in halves]
        if has_file and zones[0]["shared"]:
            ranges = []
        memory = {"memory_ranges": {"data": ranges}, "guest_ram_mappings": mappings}
        state = {"devices": self.settings["version"]}
        if self.settings.get("foreign_state"):
            state["memory"] = memory
        else:
            part = {"snapshot_data": {"state": json.dumps(memory)}}
            state["snapshots"] = {"memory-manager": part}
        (directory / "state.json").write_text(json.dumps(state))
        if ranges:
            (directory / "memory-ranges").write_bytes(self.guest.memory)

    def _check_sandbox(self, directory: Path) -> None:
        """Refuse a directory that Landlock keeps the process from writing to."""
        for rule in self.config["landlock_rules"] if self.config["landlock_enable"] else []:
            if "w" in rule["access"] and directory.is_relative_to(rule["path"]):
                return
        raise RefusedError(REFUSED, "Permission denied")

    def put_vm_restore(self, wish: dict[str, Any]) -> None:
        self.require("new", status=REFUSED)
        directory = Path(wish["source_url"].removeprefix("file://"))
        config = json.loads((directory / "config.json").read_text())
        if wrong := problem(CLOUD_HYPERVISOR["PUT /vm.create"], config):
            raise RefusedError(REFUSED, f"config.json: {wrong}")
        nets, sent = config.get("net", []), wish.get("net_fds", [])
        if [(net["id"], net.get("fds")) for net in nets] != [(net["id"], [-1]) for net in sent]:
            raise RefusedError(REFUSED, "a network card without its tap")
        self._take_taps(sum(net["num_fds"] for net in sent))
        self.config = config
        state = json.loads((directory / "state.json").read_text())
        if "memory" in state:
            memory = state["memory"]
        else:
            memory = json.loads(state["snapshots"]["memory-manager"]["snapshot_data"]["state"])
        if wrong := problem(MEMORY, memory):
            raise RefusedError(REFUSED, f"state.json: {wrong}")
        self._start(self._saved_memory(memory, directory / "memory-ranges"), booting=False)
        self.set_running(False)

    def _saved_memory(self, memory: dict[str, Any], dump: Path) -> mmap.mmap:
        mappings = memory["guest_ram_mappings"]
        size = sum(mapping["size"] for mapping in mappings)
        zone = self.config["memory"].get("zones", [{"id": "mem0"}])[0]
        if {mapping["zone_id"] for mapping in mappings} != {zone["id"]}:
            raise RefusedError(REFUSED, "no memory region")
        if file := zone.get("file"):
            ram = map_file(Path(file), size, shared=zone["shared"])
            # The real one would take what it is told to, and the guest would go mad.
            found = [(one["gpa"], one["file_offset"], one["size"]) for one in mappings]
            if found != halves_of(size):
                raise RefusedError(REFUSED, "this is not where the guest's memory is in the file")
        else:
            ram = mmap.mmap(-1, size)
        if ranges := memory["memory_ranges"]["data"]:
            with dump.open("rb") as content:
                for _, offset, length in halves_of(sum(one["length"] for one in ranges)):
                    ram[offset : offset + length] = content.read(length)
        return ram


def halves_of(size: int) -> list[tuple[int, int, int]]:
    """Split RAM in two, as if it did not fit below the hole: address, offset and size of each."""
    half = size // 2
    return [(0, 0, half), (HIGH, half, size - half)]


def lock(disk: dict[str, Any]) -> None:
    """Lock all bytes of a disk for as long as the process lives."""
    if disk.get("image_type") != "Raw":
        raise RefusedError(REFUSED, "sector 0 of this disk could not be written")
    reads = disk.get("readonly", False)
    fd = os.open(disk["path"], os.O_RDONLY if reads else os.O_RDWR)
    kind = fcntl.F_RDLCK if reads else fcntl.F_WRLCK
    try:
        wanted = struct.pack("hhqqi4x", kind, 0, 0, os.fstat(fd).st_size, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except BlockingIOError as error:
        raise RefusedError(REFUSED, "The file is already locked") from error
