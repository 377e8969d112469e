"""The main job, told step by step: a sandbox runs code, and goes back in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from arrakis import ArrakisError, Progress, Sandbox, SandboxManager

PROGRAM = '''
import os, pathlib, subprocess, sys

notes = pathlib.Path("notes")
notes.mkdir()
for number in range(3):
    (notes / f"{number}.txt").write_text(f"note {number}: {number ** 2}\\n")

counter = """
import itertools, pathlib, time
for count in itertools.count(1):
    pathlib.Path("count.new").write_text(str(count))
    pathlib.Path("count.new").rename("count")
    time.sleep(0.1)
"""
process = subprocess.Popen([sys.executable, "-c", counter], start_new_session=True)
pathlib.Path("pid").write_text(str(process.pid))
print(f"wrote {len(list(notes.iterdir()))} notes, started a counter with PID {process.pid}")
'''

LOOK = """
echo "  notes:   $(cat notes/*.txt 2>/dev/null | tr '\\n' ';')"
if kill -0 $(cat pid) 2>/dev/null; then pid=$(cat pid); else pid=none; fi
echo "  counter: PID $pid, at $(cat count 2>/dev/null || echo nothing)"
"""


class Teller:
    """Says what happens, and how long it took."""

    def __init__(self) -> None:
        self._step = 0

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        self._step += 1
        print(f"\n{self._step}. {text}", flush=True)
        began = time.monotonic()
        yield
        print(f"   ({time.monotonic() - began:.2f} s)", flush=True)


def network_settings() -> str:
    """Keep the network to a place of its own: this host's is none of a demonstration's business."""
    if os.geteuid() == 0:
        return f'[network]\nnamespace = "arrakis-demo-{os.getpid()}"\n'
    return '[network]\nmode = "user"\n'


@contextmanager
def temporary_daemon(*flags: str, settings: str | None = None) -> Iterator[Path]:
    """Run a daemon with a state directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="arrakis-demo-") as directory:
        Path(directory).chmod(0o711)  # VMMs run as a user of their own and must get through
        socket = Path(directory) / "arrakisd.sock"
        log = Path(directory) / "arrakisd.log"
        config = Path(directory) / "arrakisd.toml"
        config.write_text(network_settings() if settings is None else settings)
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                [
                    *(sys.executable, "-m", "arrakisd", "--config", config),
                    *("--state", directory, "--socket", socket, *flags),
                ],
                stdout=output,
                stderr=output,
            )
        try:
            while not socket.exists():
                if daemon.poll() is not None:
                    sys.exit(f"the daemon did not start:\n{log.read_text()}")
                time.sleep(0.05)
            yield socket
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=15)


def say_progress(progress: Progress) -> None:
    print(f"   ... {progress.text}", flush=True)


def look(sandbox: Sandbox) -> str:
    """Show the notes and the counter, and give them."""
    seen = sandbox.run_cmd(LOOK)["output"]
    print(seen, end="", flush=True)
    return seen


def counter_pid(seen: str) -> str:
    return seen.split("PID ")[1].split(",")[0]


def count(sandbox: Sandbox) -> int:
    return int(sandbox.run_cmd("cat count")["output"])


def main() -> None:
    tell = Teller()
    print("This shows a sandbox: a small Linux machine that can go back in time.")
    with ExitStack() as stack:
        with tell.step(
            "A daemon is started, with a state directory of its own. It first finds out whether\n"
            "   hardware virtualisation really works here; if not, machines are emulated."
        ):
            socket = stack.enter_context(temporary_daemon())
            manager = stack.enter_context(SandboxManager(socket=str(socket)))
        run(tell, manager)
        with tell.step("The daemon is stopped. It ends every machine and takes its files along."):
            stack.close()
    print("\nThat is all. Next: the first program in README.md, and 'arrakis --help'.")


def run(tell: Teller, manager: SandboxManager) -> None:
    info = manager.info()
    print(f"   machines run under {info.vmm} with accelerator '{info.accelerator}'")
    with tell.step(
        "A sandbox is started. The first start of a kind boots Linux once and keeps the\n"
        "   result as a template; that takes a while, under emulation half a minute."
    ):
        sandbox = manager.start_sandbox("demo", progress=say_progress)
    with tell.step("Another one is started: from now on nothing boots, a template is woken."):
        other = manager.start_sandbox("quick")
        print(f"   {other.run_cmd('uname -sr; hostname')['output'].strip()!r}")
    other.destroy()
    with tell.step(
        "A real Python program runs inside: it writes files and leaves a process behind\n"
        "   that counts, ten times a second."
    ):
        sandbox.upload_files([{"path": "program.py", "content": PROGRAM}])
        print("  ", sandbox.run_cmd("python3 program.py")["output"].strip())
        time.sleep(1)
        before = look(sandbox)
    with tell.step("A snapshot is taken, while all of that runs."):
        checkpoint = sandbox.snapshot("before")
        counted = count(sandbox)
    with tell.step("Now the machine is wrecked: the notes deleted, the counter killed."):
        sandbox.run_cmd("rm -r notes; kill $(cat pid); sleep 0.2; rm count")
        look(sandbox)
    with tell.step("The snapshot is restored, as a machine of its own: back in time."):
        past = manager.restore("past", checkpoint)
        after = look(past)
        check(before.splitlines()[0] == after.splitlines()[0], "the notes are back")
        check(
            counter_pid(before) == counter_pid(after),
            f"the counter is the same process, PID {counter_pid(after)}",
        )
        first = count(past)
        time.sleep(1)
        check(
            counted - 20 <= first < count(past),
            f"it went on counting from where it was ({first}, then {count(past)})",
        )
    with tell.step("The restored machine is forked: three futures of one past."):
        for number, fork in enumerate(past.fork(3)):
            fork.run_cmd(f"echo future {number} > future")
            seen = fork.run_cmd("hostname; cat future notes/2.txt")["output"].split("\n")
            print("  ", " | ".join(seen[:3]))
            check(fork.run_cmd("ls")["output"].count("future") == 1, "it has a future of its own")
    with tell.step("All machines are destroyed."):
        manager.destroy_all()


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"   this did not hold: {what}")
    print(f"   yes: {what}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except ArrakisError as error:
        sys.exit(f"error: {error}\nhint: {error.hint or 'arrakis doctor'}")
