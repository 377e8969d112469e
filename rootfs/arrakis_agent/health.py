"""``agent.health``: how the guest is."""

from __future__ import annotations

from pathlib import Path

from arrakis_rpc.guest_api import Health, Nothing

from .call import Call
from .tools import RunTool

_STARTED = {b"running", b"degraded"}


class HealthReporter:
    """Reads what ``root`` says about the system."""

    def __init__(self, root: Path, run_tool: RunTool) -> None:
        self._proc = root / "proc"
        self._systemd = root / "run/systemd/system"
        self._run_tool = run_tool
        self._booted = False

    async def report(self, _call: Call, _params: Nothing) -> Health:
        """Tell how the guest is."""
        memory = self._read_memory()
        return Health(
            booted=await self._has_booted(),
            uptime=float((self._proc / "uptime").read_text().split()[0]),
            load=float((self._proc / "loadavg").read_text().split()[0]),
            memory_total=memory["MemTotal"],
            memory_available=memory["MemAvailable"],
            processes=sum(entry.name.isdigit() for entry in self._proc.iterdir()),
        )

    async def _has_booted(self) -> bool:
        # systemctl costs a third of a second under emulation, so it is asked until it says
        # yes, which is forever.
        if not self._booted:
            if self._systemd.is_dir():
                _, output = await self._run_tool(("systemctl", "is-system-running"), b"")
                self._booted = output.strip() in _STARTED
            else:
                self._booted = True  # started by something that has no such notion
        return self._booted

    def _read_memory(self) -> dict[str, int]:
        values = {}
        for line in (self._proc / "meminfo").read_text().splitlines():
            name, _, size = line.partition(":")
            values[name] = int(size.split()[0]) * 1024
        return values
