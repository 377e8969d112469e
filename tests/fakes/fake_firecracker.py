"""A stand-in for Firecracker."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import struct
import sys
import time
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
    farewell = "reboot"

    def __init__(self, directory: Path, api_socket: Path) -> None:
        super().__init__(directory, api_socket)
        self.machine: dict[str, Any] = {"mem_size_mib": 128}
        self.drives: dict[str, dict[str, Any]] = {}
        self.cards: list[str] = []
        self.taps: dict[str, int] = {}
        self.loaded: Path | None = None
        self.is_configured = False
        self.is_broken = False

    def _serve_one(self, connection: socket.socket) -> None:
        super()._serve_one(connection)
        if self.is_broken:
            sys.exit("fake: could not be woken")

    def _answer(self, name: str, target: str, content: Any) -> Any:
        identity = target.rpartition("/")[2]
        for field in ("drive_id", "iface_id"):
            if isinstance(content, dict) and content.get(field, identity) != identity:
                raise RefusedError(400, f"the path says {identity}, the body {content[field]}")
        return super()._answer(name, target, content)

    def configure(self) -> None:
        """Take part of a machine that is to be booted: none can be woken any more."""
        self.require("new", status=400)
        self.is_configured = True

    def open_file(self, name: str, mode: str = "rb") -> None:
        """Open a file as the real one does where it is told of it."""
        try:
            self.inside(name).open(mode).close()
        except OSError as error:
            raise RefusedError(400, f"{name} cannot be opened: {error}") from error

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
        self.configure()
        self.machine = machine

    def put_boot_source(self, source: dict[str, Any]) -> None:
        self.configure()
        self.open_file(source["kernel_image_path"])
        if initrd := source.get("initrd_path"):
            self.open_file(initrd)
        self.kernel = source["kernel_image_path"]

    def put_drives_drive_id(self, drive: dict[str, Any]) -> None:
        self.configure()
        self._open_drive(drive)
        self.drives[drive["drive_id"]] = drive

    def _open_drive(self, drive: dict[str, Any]) -> None:
        self.open_file(drive["path_on_host"], "rb" if drive["is_read_only"] else "r+b")

    def put_network_interfaces_iface_id(self, card: dict[str, Any]) -> None:
        self.configure()
        self.open_tap(card["host_dev_name"])
        self.cards = [card["iface_id"]]

    def put_vsock(self, vsock: dict[str, Any]) -> None:
        self.configure()
        self.vsock = vsock["uds_path"]

    def put_entropy(self, _: dict[str, Any]) -> None:
        self.configure()

    def put_actions(self, _: dict[str, Any]) -> None:
        self.require("new", status=400)
        if not hasattr(self, "kernel"):
            raise RefusedError(400, "no kernel was configured")
        ram = mmap.mmap(-1, self.machine["mem_size_mib"] * MIB)
        self._start(ram, booting=True)
        self.set_running(True)

    def _start(self, ram: mmap.mmap, *, booting: bool) -> None:
        disk, vsock = self.inside(self.drives["disk"]["path_on_host"]), self.inside(self.vsock)
        if vsock.exists():
            raise RefusedError(400, f"{self.vsock} is in use already")
        self.start_guest(ram, disk, vsock, booting=booting)

    def patch_vm(self, wish: dict[str, Any]) -> None:
        self.require("running", "paused", status=400)
        self.set_running(wish["state"] == "Resumed")

    def put_snapshot_create(self, wish: dict[str, Any]) -> None:
        self.require("paused", status=400)
        assert self.guest is not None
        time.sleep(float(self.settings.get("writes_for", 0)))
        state = {
            "machine": self.machine,
            "drives": self.drives,
            "cards": self.cards,
            "vsock": self.vsock,
        }
        self.inside(wish["snapshot_path"]).write_text(json.dumps(state))
        self._dump(self.inside(wish["mem_file_path"]), whole=wish["snapshot_type"] == "Full")
        self.guest.reset_connections()

    def _dump(self, path: Path, *, whole: bool) -> None:
        """Write all pages, or those no longer the file's and some that are; others it leaves."""
        assert self.guest is not None
        memory = self.guest.memory
        before = self.loaded.read_bytes() if self.loaded else bytes(len(memory))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        with open(fd, "wb") as file:  # noqa: PTH123 -- a descriptor
            if os.fstat(fd).st_size != len(memory):
                file.truncate(0)
            file.truncate(len(memory))
            for at in range(0, len(memory), PAGE):
                page = memory[at : at + PAGE]
                if whole or page != before[at : at + PAGE] or at % (16 * PAGE) == 0:
                    os.pwrite(fd, page, at)

    def put_snapshot_load(self, wish: dict[str, Any]) -> None:
        self.require("new", status=400)
        if self.is_configured:
            raise RefusedError(400, "a machine has been configured")
        self.is_broken = True  # the real one gives up if anything fails from here on
        self.open_file(wish["snapshot_path"])
        state = json.loads(self.inside(wish["snapshot_path"]).read_text())
        self.machine, self.drives = state["machine"], state["drives"]
        for drive in self.drives.values():
            self._open_drive(drive)
        self.vsock, self.cards = state["vsock"], state["cards"]
        overrides = wish.get("network_overrides", [])
        if [one["iface_id"] for one in overrides] != self.cards:
            raise RefusedError(400, "the tap that a network card had is not there")
        for one in overrides:
            self.open_tap(one["host_dev_name"])
        size = self.machine["mem_size_mib"] * MIB
        self.open_file(wish["mem_backend"]["backend_path"])
        self.loaded = self.inside(wish["mem_backend"]["backend_path"])
        ram = map_file(self.loaded, size, shared=False)
        self._start(ram, booting=False)
        self.set_running(False)
        self.is_broken = False
