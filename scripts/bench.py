"""Measure the system against bare QEMU, interleaved in one run, so that ratios can be trusted.

Prints a table and writes ``bench.json``. Absolute times depend on the machine; what counts
are the ratios of two things measured in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

from attrs import asdict, define
from bare_qemu import BareVm
from demo import temporary_daemon

from arrakis import Sandbox, SandboxManager

MIB = 2**20
TRANSFER = 100 * MIB

IN_GUEST = """
import statistics, subprocess, time
times = []
for _ in range(40):
    began = time.perf_counter()
    subprocess.run(["true"], capture_output=True)
    times.append(time.perf_counter() - began)
print(statistics.median(times[5:]) * 1000)
"""


@define
class Row:
    name: str
    value: float
    unit: str
    target: float | None
    met: bool | None
    n: int
    note: str


class Bench:
    """Collects rows."""

    def __init__(self, manager: SandboxManager, state: Path, rounds: int) -> None:
        self.manager = manager
        self.state = state
        self.rounds = rounds
        self.rows: list[Row] = []

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        n: int,
        target: float | None = None,
        at_least: bool = False,
        note: str = "",
    ) -> None:
        met = None
        if target is not None:
            met = value >= target if at_least else value <= target
        self.rows.append(Row(name, round(value, 3), unit, target, met, n, note))
        print(f"  {name}: {value:.3f} {unit}", file=sys.stderr, flush=True)

    def cold_boot(self) -> None:
        began = time.monotonic()
        self.manager.templates.build(
            progress=lambda progress: print(f"  {progress.text}", file=sys.stderr)
        )
        template = self.manager.templates.list()[0]
        self.add(
            "cold_boot_s",
            template.boot,
            "s",
            n=1,
            note=f"stored after {time.monotonic() - began:.1f} s; once per shape",
        )

    def starts(self) -> None:
        """From nothing to the answer of the first `true`: bare QEMU, start, fork; in turn."""
        bare, started, forked = [], [], []
        self.manager.start_sandbox("warm-up").destroy()
        parent = self.manager.start_sandbox("parent")
        parent.run(["true"])
        for number in range(self.rounds):
            bare.append(self.bare_start())
            started.append(self.sdk_start(f"start{number}"))
            forked.append(self.sdk_fork(parent))
        parent.destroy()
        n = self.rounds
        base = statistics.median(bare)
        self.add(
            "bare_qemu_ms",
            base * 1000,
            "ms",
            n=n,
            note="same command line and template; minimal script, waits for `true`",
        )
        pairs = [ours / theirs for ours, theirs in zip(started, bare, strict=True)]
        self.add(
            "start_exec_ratio",
            statistics.median(pairs),
            "x",
            n=n,
            target=1.3,
            note=f"start + exec true by the SDK: {statistics.median(started) * 1000:.0f} ms",
        )
        pairs = [ours / theirs for ours, theirs in zip(forked, bare, strict=True)]
        self.add(
            "fork_exec_ratio",
            statistics.median(pairs),
            "x",
            n=n,
            target=1.1,
            note=f"fork + exec true: {statistics.median(forked) * 1000:.0f} ms, "
            "without standby VMMs",
        )

    def bare_start(self) -> float:
        began = time.monotonic()
        with BareVm(self.state) as vm:
            vm.run_true()
            return time.monotonic() - began

    def sdk_start(self, name: str) -> float:
        began = time.monotonic()
        sandbox = self.manager.start_sandbox(name)
        sandbox.run(["true"], check=True)
        took = time.monotonic() - began
        sandbox.destroy()
        return took

    def sdk_fork(self, parent: Sandbox) -> float:
        began = time.monotonic()
        (sandbox,) = parent.fork(1)
        sandbox.run(["true"], check=True)
        took = time.monotonic() - began
        sandbox.destroy()
        return took

    def calls(self) -> None:
        times = []
        for _ in range(500):
            began = time.perf_counter()
            self.manager.health()
            times.append(time.perf_counter() - began)
        self.add("rpc_rtt_ms_p50", statistics.median(times) * 1000, "ms", n=500, target=1.0)
        with self.manager.start_sandbox("warm") as sandbox:
            outside, inside = [], []
            for _ in range(5):
                sandbox.run(["true"])
            for _ in range(3):
                for _ in range(20):
                    began = time.perf_counter()
                    sandbox.run(["true"], check=True)
                    outside.append((time.perf_counter() - began) * 1000)
                inside.append(float(sandbox.run(["python3", "-c", IN_GUEST], check=True).text))
            warm, base = statistics.median(outside), statistics.median(inside)
            self.add("exec_warm_ms_p50", warm, "ms", n=len(outside))
            self.add(
                "exec_overhead_ms_p50",
                warm - base,
                "ms",
                n=len(outside),
                target=5.0,
                note=f"against subprocess.run inside the guest: {base:.1f} ms",
            )

    def snapshots(self) -> None:
        with self.manager.start_sandbox("snap") as sandbox:
            sandbox.run(["true"])
            pauses, sizes, changed = [], [], []
            for number in range(self.rounds):
                sandbox.run_cmd(f"head -c 500000 /dev/urandom > /tmp/{number}; sync")
                snapshot = self.manager.snapshots.info(sandbox.snapshot(f"bench-{number}"))
                pauses.append(snapshot.pause * 1000)
                sizes.append(snapshot.bytes)
                changed.append(snapshot.changed_pages * 4096)
            for number in range(self.rounds):
                self.manager.snapshots.delete(f"bench-{number}")
        last = f"{changed[-1] / MIB:.1f} MiB changed since the template, "
        last += f"{sizes[-1] / MIB:.1f} MiB stored"
        self.add(
            "snapshot_pause_ms_p50",
            statistics.median(pauses),
            "ms",
            n=len(pauses),
            target=60,
            note=last,
        )

    def memory(self) -> None:
        sandboxes = [self.manager.start_sandbox(f"memory{number}") for number in range(3)]
        private = []
        for sandbox in sandboxes:
            sandbox.run(["true"])
            pid = sandbox.info()["pid"]
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            private.append(
                sum(
                    int(line.split()[1]) / 1024
                    for line in rollup.splitlines()
                    if line.startswith(("Private_Clean", "Private_Dirty"))
                )
            )
            sandbox.destroy()
        self.add("private_mib_per_vm", statistics.median(private), "MiB", n=3)
        daemon = self.manager.info().pid
        status = Path(f"/proc/{daemon}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        self.add("daemon_rss_mib", int(resident.split()[1]) / 1024, "MiB", n=1)

    def transfers(self) -> None:
        with BareVm(self.state) as vm:
            raw_up, raw_down = vm.raw_throughput(TRANSFER)
        content = os.urandom(TRANSFER)
        with self.manager.start_sandbox("transfer") as sandbox:
            began = time.monotonic()
            sandbox.files.write("/tmp/big", content)
            up = TRANSFER / MIB / (time.monotonic() - began)
            began = time.monotonic()
            same = sandbox.files.read("/tmp/big") == content
            down = TRANSFER / MIB / (time.monotonic() - began)
        if not same:
            sys.exit("the downloaded file is not the one that was uploaded")
        self.add("upload_mib_s", up, "MiB/s", n=1, note=f"raw channel {raw_up:.0f} MiB/s")
        self.add("download_mib_s", down, "MiB/s", n=1, note=f"raw channel {raw_down:.0f} MiB/s")


def show(bench: Bench) -> None:
    print(f"{'name':26}{'value':>10} {'unit':7}{'target':>8}  {'met':5}{'n':>4}  note")
    for row in bench.rows:
        target = "" if row.target is None else f"{row.target:g}"
        met = {True: "yes", False: "NO", None: ""}[row.met]
        figures = f"{row.value:>10.3f} {row.unit:7}{target:>8}  {met:5}{row.n:>4}"
        print(f"{row.name:26}{figures}  {row.note}")


def host(manager: SandboxManager) -> dict[str, object]:
    info = manager.info()
    return {
        "cores": os.cpu_count(),
        "memory_mib": info.memory_mib,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "vmm": info.vmm,
        "accelerator": info.accelerator,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="measurements of each kind")
    parser.add_argument("--only", nargs="*", help="names of parts: starts calls snapshots ...")
    flags = parser.parse_args()
    parts = ("starts", "calls", "snapshots", "memory", "transfers")
    with temporary_daemon() as socket, SandboxManager(socket=str(socket)) as manager:
        bench = Bench(manager, socket.parent, flags.rounds)
        bench.cold_boot()
        for part in flags.only or parts:
            getattr(bench, part)()
        result = {"host": host(manager), "rows": [asdict(row) for row in bench.rows]}
    Path("bench.json").write_text(json.dumps(result, indent=1) + "\n")
    show(bench)


if __name__ == "__main__":
    main()
