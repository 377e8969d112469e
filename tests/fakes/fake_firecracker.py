"""A stand-in for Firecracker."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from pathlib import Path
from typing import Any

from api_tables import FIRECRACKER
from fake_vmm import FakeVmm, RefusedError, map_file

MIB = 2**20
PAGE = 4096
TUNSETIFF = 0x400454CA
TAP_FLAGS = 0x0002 | 0x1000 | 0x4000


class FakeFirecracker(FakeVmm):
    table = FIRECRACKER

    def __init__(self, directory: Path, api_socket: Path) -> None:
        super().__init__(directory, api_socket)
        self.machine: dict[str, Any] = {"mem_size_mib": 128}
        self.drives: dict[str, str] = {}
        self.cards: list[str] = []
        self.taps: dict[str, int] = {}
        self.loaded: Path | None = None

    def inside(self, name: str) -> Path:
        """Give a path as the process sees it: in a jail nothing else is there."""
        path = Path(name)
        if (jail := os.environ.get("FAKE_JAIL")) is None:
            return path
        there = Path(jail, name.lstrip("/"))
        if not there.resolve().is_relative_to(jail):
            raise RefusedError(400, f"{name} leads out of the jail")
        return there

    def open_tap(self, name: str) -> None:
        """Open a tap as the real one does; it must be there, and nobody else's."""
        if not Path("/sys/class/net", name).exists():
            raise RefusedError(400, f"there is no tap {name}")
        fd = os.open("/dev/net/tun", os.O_RDWR)
        try:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_FLAGS))
        except OSError as error:
            os.close(fd)
            raise RefusedError(400, f"cannot open tap {name}: {error}") from error
        self.taps[name] = fd

    def refusal(self, message: str) -> Any:
        return {"fault_message": message}

    def get_version(self, _: dict[str, Any]) -> Any:
        return {"firecracker_version": self.settings["version"]}

    def put_machine_config(self, machine: dict[str, Any]) -> None:
        self.require("new", status=400)
        self.machine = machine

    def put_boot_source(self, source: dict[str, Any]) -> None:
        self.require("new", status=400)
        if not self.inside(source["kernel_image_path"]).is_file():
            raise RefusedError(400, "the kernel file cannot be opened")
        self.kernel = source["kernel_image_path"]

    def put_drives_drive_id(self, drive: dict[str, Any]) -> None:
        self.require("new", status=400)
        name = drive["path_on_host"]
        with self.inside(name).open("rb" if drive["is_read_only"] else "r+b"):
            self.drives[drive["drive_id"]] = name

    def put_network_interfaces_iface_id(self, card: dict[str, Any]) -> None:
        self.require("new", status=400)
        self.open_tap(card["host_dev_name"])
        self.cards = [card["iface_id"]]

    def put_vsock(self, vsock: dict[str, Any]) -> None:
        self.require("new", status=400)
        self.vsock = vsock["uds_path"]

    def put_entropy(self, _: dict[str, Any]) -> None:
        self.require("new", status=400)

    def put_actions(self, _: dict[str, Any]) -> None:
        self.require("new", status=400)
        if not hasattr(self, "kernel"):
            raise RefusedError(400, "no kernel was configured")
        ram = mmap.mmap(-1, self.machine["mem_size_mib"] * MIB)
        self._start(ram, booting=True)
        self.set_running(True)

    def _start(self, ram: mmap.mmap, *, booting: bool) -> None:
        disk, vsock = self.inside(self.drives["disk"]), self.inside(self.vsock)
        self.start_guest(ram, disk, vsock, booting=booting)

    def patch_vm(self, wish: dict[str, Any]) -> None:
        self.require("running", "paused", status=400)
        self.set_running(wish["state"] == "Resumed")

    def put_snapshot_create(self, wish: dict[str, Any]) -> None:
        self.require("paused", status=400)
        assert self.guest is not None
        state = {
            "machine": self.machine,
            "drives": self.drives,
            "cards": self.cards,
            "vsock": self.vsock,
        }
        self.inside(wish["snapshot_path"]).write_text(json.dumps(state))
        dump = self.inside(wish["mem_file_path"])
        if wish["snapshot_type"] == "Full":
            dump.write_bytes(self.guest.memory)
        else:
            self._write_present(dump)
        self.guest.reset_connections()

    def _write_present(self, dump: Path) -> None:
        """Write the pages that are no longer the file's, and some that are, between holes."""
        assert self.guest is not None
        before = self.loaded.read_bytes() if self.loaded else bytes(len(self.guest.memory))
        with dump.open("wb") as file:
            file.truncate(len(before))
            for at in range(0, len(before), PAGE):
                page = self.guest.memory[at : at + PAGE]
                if page != before[at : at + PAGE] or at % (16 * PAGE) == 0:
                    os.pwrite(file.fileno(), page, at)

    def put_snapshot_load(self, wish: dict[str, Any]) -> None:
        self.require("new", status=400)
        state = json.loads(self.inside(wish["snapshot_path"]).read_text())
        self.machine = state["machine"]
        for name, path in state["drives"].items():
            self.drives[name] = path
            if not self.inside(path).exists():
                raise RefusedError(400, f"{path} is not there")
        self.vsock, self.cards = state["vsock"], state["cards"]
        overrides = wish.get("network_overrides", [])
        if [one["iface_id"] for one in overrides] != self.cards:
            raise RefusedError(400, "the tap that a network card had is not there")
        for one in overrides:
            self.open_tap(one["host_dev_name"])
        size = self.machine["mem_size_mib"] * MIB
        self.loaded = self.inside(wish["mem_backend"]["backend_path"])
        ram = map_file(self.loaded, size, shared=False)
        self._start(ram, booting=False)
        self.set_running(False)
