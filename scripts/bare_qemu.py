"""The yardstick: QEMU driven by the least code that gets an answer out of the guest.

It restores the daemon's own template with the daemon's own command line, opens a session
with the agent and runs one command. It has a tap that leads nowhere. No daemon, no event
loop, no identity, no checks.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from arrakis_rpc.connection import CallFailed, CallSucceeded, Connection, Role
from arrakis_rpc.converter import unstructure
from arrakis_rpc.guest_api import ExecSpec, Hello
from arrakis_rpc.resync import make_preamble, new_token
from arrakisd.host.net.interface import TapNic
from arrakisd.host.net.taps import open_tap
from arrakisd.host.vmm.interface import LaunchSpec
from arrakisd.host.vmm.qemu_arguments import BLANK_DISK, Wires, command_line, disk_blockdev
from arrakisd.storage.manifest import DEVICE_STATE, EMPTY_LAYER, MEMORY

MIB = 2**20

RAW = """
systemctl stop arrakis-agent
port=$(ls /dev/vport*p*)
dd if=$port of=/dev/null bs=64k iflag=fullblock count={blocks} 2>/dev/null
echo done > $port
dd if=/dev/zero of=$port bs=64k count={blocks} 2>/dev/null
"""


def _with_disk(argv: list[str], disk: Path) -> list[str]:
    """Name the disk in the command line, where the daemon's processes get it later."""
    node = json.dumps({**disk_blockdev(0, str(disk)), "node-name": BLANK_DISK})
    return [node if BLANK_DISK in one and "null-co" in one else one for one in argv]


class BareVm:
    """A restored VM, for the length of a block."""

    def __init__(self, state: Path) -> None:
        self._template = next((state / "templates").iterdir())
        self._manifest = json.loads((self._template / "manifest.json").read_text())
        # Two levels below the state directory, where the layer's backing file is found.
        self._directory = Path(tempfile.mkdtemp(dir=state / "scratch"))

    def __enter__(self) -> BareVm:
        shape = self._manifest["shape"]
        disk = self._directory / "disk.qcow2"
        layer = self._manifest["layers"][-1]["id"]
        shutil.copyfile(self._template.parent.parent / "layers" / layer / EMPTY_LAYER, disk)
        with ExitStack() as theirs:
            pairs = [socket.socketpair() for _ in range(3)]
            self._qmp, self._agent, self._console = (left for left, _ in pairs)
            fds = [theirs.enter_context(right).fileno() for _, right in pairs]
            state = theirs.enter_context((self._template / DEVICE_STATE).open("rb")).fileno()
            tap = open_tap("bare%d")
            theirs.callback(tap.close)
            spec = LaunchSpec(
                directory=self._directory,
                vcpus=shape["vcpus"],
                memory_mib=shape["memory_mib"],
                disk_mib=shape["disk_mib"],
                memory_file=self._template / MEMORY,
                root_image=Path(shape["root_image"]),
                accelerator=shape["accelerator"],
                identity=None,
                nic=TapNic(tap.fd, tap.name),
            )
            self._process = subprocess.Popen(
                _with_disk(command_line("qemu-system-x86_64", spec, Wires(*fds)), disk),
                pass_fds=[*fds, state, tap.fd],
            )
        self._lines = self._qmp.makefile("r")
        self._execute("qmp_capabilities")
        capability = {"capability": "x-ignore-shared", "state": True}
        self._execute("migrate-set-capabilities", capabilities=[capability])
        self._execute("migrate-incoming", uri=f"fd:{state}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._lines.close()
        for end in (self._qmp, self._agent, self._console):
            end.close()
        shutil.rmtree(self._directory)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def wait_running(self) -> None:
        """Wait until the vCPUs run."""
        while not self._execute("query-status")["running"]:
            pass

    def _execute(self, command: str, **arguments: Any) -> Any:
        line = json.dumps({"execute": command, "arguments": arguments})
        self._qmp.sendall(line.encode() + b"\n")
        while "return" not in (answer := json.loads(self._lines.readline())):
            if "error" in answer:
                raise RuntimeError(answer)
        return answer["return"]

    def run_true(self) -> None:
        """Wait for the agent's answer to `true`."""
        self._call(ExecSpec(argv=["true"]))

    def _call(self, command: ExecSpec) -> None:
        connection = Connection(Role.CALLER)
        preamble, nonce = make_preamble(bytes.fromhex(self._manifest["resync_token"]))
        hello = Hello(versions=[1], token=new_token())
        _, first = connection.start_call("agent.hello", unstructure(hello))
        wanted, second = connection.start_call("exec.run", unstructure(command))
        self._agent.sendall(preamble + first + second)
        received = b""
        while nonce not in received:
            received += self._agent.recv(65536)
        data = received.split(nonce, 1)[1]
        while True:
            for event in connection.receive(data):
                if isinstance(event, CallFailed):
                    raise event.error
                if isinstance(event, CallSucceeded) and event.call_id == wanted:
                    return
            data = self._agent.recv(65536)

    def raw_throughput(self, size: int) -> tuple[float, float]:
        """Give MiB/s into and out of the guest, with nothing but `dd` at its end."""
        script = RAW.format(blocks=size // 65536)
        self._call(ExecSpec(shell=f"systemd-run -q bash -c '{script}'"))
        time.sleep(3)  # until the agent is stopped and dd reads
        began = time.monotonic()
        self._agent.sendall(bytes(size))
        while b"done" not in self._agent.recv(65536):
            pass
        up = size / MIB / (time.monotonic() - began)
        began, left = time.monotonic(), size
        while left > 0:
            left -= len(self._agent.recv(1024 * 1024))
        return up, size / MIB / (time.monotonic() - began)
