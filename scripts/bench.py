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
from bench_daemons import (
    POOL_SETTINGS,
    SETTINGS,
    UNCONNECTED_POOL_SETTINGS,
    UNCONNECTED_SETTINGS,
    prepared_daemon,
    settle,
)
from bench_http import CLIENTS, LOADED_VMS, ROUNDS, free_port, load, rest_overhead
from bench_kernel import boot_seconds
from demo import temporary_daemon

from arrakis import Sandbox, SandboxManager
from arrakis_kernel import cache_directory, find_kernel, find_small_kernel

MIB = 2**20
PARTS = (
    *("starts", "pool", "network", "calls", "http", "load"),
    *("snapshots", "chains", "memory", "transfers", "kernel"),
)
TRANSFER = 100 * MIB
BOOTS = 3

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

    def __init__(self, manager: SandboxManager, state: Path, rounds: int, port: int) -> None:
        self.manager = manager
        self.port = port
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

    def kernel(self) -> None:
        """Whole boots with the stock kernel and the small one, in turn; none unless it is built."""
        cache = cache_directory()
        stock, small = find_kernel(cache), find_small_kernel(cache)
        if stock is None or small is None:
            print("  no small kernel here: python -m arrakis_kernel small", file=sys.stderr)
            return
        n = min(self.rounds, BOOTS)
        accelerator = self.manager.info().accelerator
        took = [[boot_seconds(self.manager, one) for one in (stock, small)] for _ in range(n)]
        for name, times in zip(
            ("boot_stock_s", "boot_small_s"), zip(*took, strict=True), strict=True
        ):
            note = f"until the guest's system has settled, under {accelerator}"
            self.add(name, statistics.median(times), "s", n=n, note=note)

    def starts(self) -> None:
        """From nothing to the answer of the first `true`: bare QEMU, start, fork; in turn."""
        bare, running, started, forked, returned = [], [], [], [], []
        self.manager.start_sandbox("warm-up").destroy()
        parent = self.manager.start_sandbox("parent")
        parent.run(["true"])
        for number in range(self.rounds):
            settle()
            bare.append(self.bare_start())
            running.append(self.bare_wake())
            started.append(sdk_start(self.manager, f"start{number}"))
            settle()
            until_returned, until_answered = sdk_fork(parent)
            returned.append(until_returned)
            forked.append(until_answered)
        self.forks_of_eight(parent)
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
            note=f"fork + exec true: {statistics.median(forked) * 1000:.0f} ms",
        )
        pairs = [ours / theirs for ours, theirs in zip(returned, running, strict=True)]
        self.add(
            "fork_return_ratio",
            statistics.median(pairs),
            "x",
            n=n,
            target=0.6,
            note=f"{statistics.median(returned) * 1000:.0f} ms, siblings with their own identity,"
            f" to bare QEMU's {statistics.median(running) * 1000:.0f} ms until vCPUs run",
        )

    def forks_of_eight(self, parent: Sandbox) -> None:
        """Eight siblings at once against one, in turn."""
        one, eight = [], []
        n = max(self.rounds // 2, 1)
        for _ in range(n):
            settle()
            until_returned, _ = sdk_fork(parent)
            one.append(until_returned)
            settle()
            began = time.monotonic()
            siblings = parent.fork(8)
            eight.append(time.monotonic() - began)
            for sibling in siblings:
                sibling.destroy()
        pairs = [many / single for many, single in zip(eight, one, strict=True)]
        self.add(
            "fork8_ratio",
            statistics.median(pairs),
            "x",
            n=n,
            target=8 * 0.6,
            note=f"8 siblings at once in {statistics.median(eight) * 1000:.0f} ms,"
            f" to {statistics.median(one) * 1000:.0f} ms for one",
        )

    def bare_wake(self) -> float:
        began = time.monotonic()
        with BareVm(self.state) as vm:
            vm.wait_running()
            return time.monotonic() - began

    def bare_start(self) -> float:
        began = time.monotonic()
        with BareVm(self.state) as vm:
            vm.run_true()
            return time.monotonic() - began

    def pool(self) -> None:
        """From nothing to the first answer, by a guest that was woken ahead; in turn with bare."""
        bare, started = [], []
        with prepared_daemon(POOL_SETTINGS) as daemon:
            for number in range(-1, self.rounds):
                daemon.wait_ready()
                bare.append(self.bare_start())
                started.append(sdk_start(daemon.manager, f"warm{number}"))
        pairs = [ours / theirs for ours, theirs in zip(started[1:], bare[1:], strict=True)]
        self.add(
            "pool_exec_ratio",
            statistics.median(pairs),
            "x",
            n=self.rounds,
            target=0.3,
            note=f"start + exec true: {statistics.median(started[1:]) * 1000:.0f} ms",
        )

    def network(self) -> None:
        """What being connected adds to a start: in turn with a daemon that has no network."""
        with (
            prepared_daemon(POOL_SETTINGS) as connected,
            prepared_daemon(UNCONNECTED_POOL_SETTINGS) as unconnected,
        ):
            more = []
            for number in range(-1, self.rounds):
                connected.wait_ready()
                unconnected.wait_ready()
                without = sdk_start(unconnected.manager, f"without{number}")
                connected.wait_ready()
                unconnected.wait_ready()
                more.append(sdk_start(connected.manager, f"with{number}") - without)
        note = "start + exec true, more than without a network"
        self.add(
            "network_start_ms",
            statistics.median(more[1:]) * 1000,
            "ms",
            n=self.rounds,
            target=20,
            note=note,
        )
        self.add(
            "network_cold_start_ms",
            statistics.median(self._cold_network()) * 1000,
            "ms",
            n=self.rounds,
            note=f"{note}, of guests that were not woken ahead",
        )

    def _cold_network(self) -> list[float]:
        with (
            temporary_daemon(settings=UNCONNECTED_SETTINGS) as socket,
            SandboxManager(socket=str(socket)) as unconnected,
        ):
            more = []
            for number in range(-1, self.rounds):
                settle()
                without = sdk_start(unconnected, f"without{number}")
                settle()
                more.append(sdk_start(self.manager, f"with{number}") - without)
        return more[1:]

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

    def http(self) -> None:
        rest, rpc = rest_overhead(self.manager, self.port)
        self.add(
            "rest_overhead_ms_p50",
            rest - rpc,
            "ms",
            n=ROUNDS,
            target=3.0,
            note=f"health by REST {rest:.2f} ms, by RPC {rpc:.2f} ms",
        )

    def load(self) -> None:
        told = load(self.manager, self.port)
        others, commands = told["without_vmm"], told["exec"]
        much = f"{CLIENTS} clients, {len(LOADED_VMS)} VMs, {told['calls_s']:.0f} calls/s by REST"
        calls = others["calls"] + commands["calls"]
        errors = str(told["first_errors"]) if told["errors"] else ""
        self.add("load_errors", told["errors"], "", n=calls, target=0, note=errors or much)
        self.add("load_calls_s", told["calls_s"], "1/s", n=calls, note="0.2 s between a client's")
        note = f"health and info; p100 {others['p100']:.0f} ms"
        self.add("load_p50_ms", others["p50"], "ms", n=others["calls"], note=note)
        self.add("load_p99_ms", others["p99"], "ms", n=others["calls"], target=50, note=note)
        note = f"echo; p100 {commands['p100']:.0f} ms"
        self.add("load_exec_p50_ms", commands["p50"], "ms", n=commands["calls"], note=note)
        self.add("load_exec_p99_ms", commands["p99"], "ms", n=commands["calls"], note=note)

    def snapshots(self) -> None:
        with self.manager.start_sandbox("snap") as sandbox:
            sandbox.run(["true"])
            written = 500_000
            pauses, sizes, changed = [], [], []
            for number in range(self.rounds):
                sandbox.run_cmd(f"head -c {written} /dev/urandom > /tmp/{number}; sync")
                snapshot = self.manager.snapshots.info(sandbox.snapshot(f"bench-{number}"))
                pauses.append(snapshot.pause * 1000)
                sizes.append(snapshot.bytes)
                changed.append(snapshot.changed_pages * 4096)
            for number in range(self.rounds):
                self.manager.snapshots.delete(f"bench-{number}")
        last = f"{changed[-1] / MIB:.1f} MiB changed since the parent, "
        last += f"{sizes[-1] / MIB:.1f} MiB stored"
        self.add(
            "snapshot_pause_ms_p50",
            statistics.median(pauses),
            "ms",
            n=len(pauses),
            target=60,
            note=last,
        )
        pairs = [
            (stored - MIB) / (pages + written)
            for stored, pages in zip(sizes[1:], changed[1:], strict=True)
        ]
        self.add(
            "snapshot_bytes_ratio",
            statistics.median(pairs),
            "x",
            n=len(pairs),
            target=1.2,
            note="stored, less 1 MiB, to changed pages and written file",
        )

    def chains(self) -> None:
        """Restore the first and the last of 100 snapshots, in turn."""
        with self.manager.start_sandbox("chain") as sandbox:
            for number in range(100):
                sandbox.files.write(f"/root/{number % 10}", os.urandom(50_000))
                sandbox.snapshot(f"chain-{number}")
        first, last = [], []
        for _ in range(self.rounds):
            first.append(self.restore("chain-0"))
            last.append(self.restore("chain-99"))
        for number in range(100):
            self.manager.snapshots.delete(f"chain-{number}")
        pairs = [deep / shallow for deep, shallow in zip(last, first, strict=True)]
        self.add(
            "chain100_restore_ratio",
            statistics.median(pairs),
            "x",
            n=len(pairs),
            target=1.5,
            note=f"the last in {statistics.median(last) * 1000:.0f} ms",
        )

    def restore(self, snapshot: str) -> float:
        began = time.monotonic()
        sandbox = self.manager.restore("restored", snapshot)
        took = time.monotonic() - began
        sandbox.destroy()
        return took

    def memory(self) -> None:
        bare, started = [], []
        for number in range(3):
            with BareVm(self.state) as vm:
                vm.run_true()
                bare.append(private_mib(vm.pid))
            with self.manager.start_sandbox(f"memory{number}") as sandbox:
                sandbox.run(["true"])
                started.append(private_mib(sandbox.info()["pid"]))
        with self.manager.start_sandbox("parent") as parent:
            siblings = parent.fork(3)
            for sandbox in siblings:
                sandbox.run(["true"])
            forked = [private_mib(sandbox.info()["pid"]) for sandbox in siblings]
            for sandbox in siblings:
                sandbox.destroy()
        yardstick = statistics.median(bare)
        note = f"bare QEMU: {yardstick:.1f} MiB"
        self.add("private_mib_per_vm", statistics.median(started), "MiB", n=3, note=note)
        sibling = statistics.median(forked)
        self.add(
            "sibling_private_ratio",
            sibling / yardstick,
            "x",
            n=3,
            target=1.2,
            note=f"idle sibling {sibling:.1f} MiB, {note}",
        )
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


def sdk_start(manager: SandboxManager, name: str) -> float:
    """Seconds from nothing to the answer of the first command."""
    began = time.monotonic()
    sandbox = manager.start_sandbox(name)
    sandbox.run(["true"], check=True)
    took = time.monotonic() - began
    sandbox.destroy()
    return took


def private_mib(pid: int) -> float:
    """Memory that is a process's own, be it alone or not.

    Not all that is private at the moment: pages of the template's file are that of whoever is
    the only one to map them.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:")) / 1024


def sdk_fork(parent: Sandbox) -> tuple[float, float]:
    """Seconds until a sibling is given, and until it has answered its first command."""
    began = time.monotonic()
    (sandbox,) = parent.fork(1)
    returned = time.monotonic() - began
    sandbox.run(["true"], check=True)
    answered = time.monotonic() - began
    sandbox.destroy()
    return returned, answered


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
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    flags = parser.parse_args()
    port = free_port()
    with (
        temporary_daemon(f"--http=127.0.0.1:{port}", settings=SETTINGS) as socket,
        SandboxManager(socket=str(socket)) as manager,
    ):
        bench = Bench(manager, socket.parent, flags.rounds, port)
        bench.cold_boot()
        for part in flags.only or PARTS:
            getattr(bench, part)()
        result = {"host": host(manager), "rows": [asdict(row) for row in bench.rows]}
    Path("bench.json").write_text(json.dumps(result, indent=1) + "\n")
    show(bench)


if __name__ == "__main__":
    main()
