"""A daemon that is killed at any moment: what it said was kept, is there and whole."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import define, field
from real_daemon import processes_naming, started_daemon, wait_until, write_config

from arrakis import ConnectionLostError, Sandbox, SandboxManager

pytestmark = pytest.mark.vm

ON_DISK, IN_MEMORY = "/root/value", "/dev/shm/value"
LONGEST_LIFE = 2.0


@define
class Ledger:
    """Which snapshots there must be, and with what; and those of which nobody knows."""

    chance: random.Random
    kept: dict[str, bytes] = field(factory=dict)
    in_doubt: dict[str, bytes] = field(factory=dict)
    number: int = 0
    value: bytes = b""  # what the machine holds

    def settle(self, manager: SandboxManager) -> None:
        """Compare with what a daemon has found; what was in doubt is known then."""
        assert [one for one in manager.health().reasons if one.part != "disk"] == []
        assert all(one.ok for one in manager.doctor().checks if one.required)
        there = {one.id for one in manager.snapshots.list()}
        assert self.kept.keys() <= there <= self.kept.keys() | self.in_doubt.keys()
        self.kept |= {one: value for one, value in self.in_doubt.items() if one in there}
        self.in_doubt.clear()
        machines = {one.name: one for one in manager.describe_all()}
        assert machines.keys() <= {"box"}
        if machines:
            assert machines["box"].status == "SUSPENDED"
            box = manager.get("box")
            box.resume()
            check(box, self.value)
            box.destroy()

    def any_kept(self) -> str | None:
        """Choose a snapshot."""
        return self.chance.choice(sorted(self.kept)) if self.kept else None


class Work(threading.Thread):
    """Does one thing after another with a machine, until the daemon is gone."""

    def __init__(self, manager: SandboxManager, sandbox: Sandbox, ledger: Ledger) -> None:
        super().__init__()
        self.manager = manager
        self.sandbox = sandbox
        self.ledger = ledger
        self.past: list[str] = []  # what the machine descends from, and it can go back to
        self.done: set[str] = set()
        self.failure: Exception | None = None

    def run(self) -> None:
        actions = [
            self.snapshot,
            self.snapshot,
            self.fork,
            self.start_another,
            self.suspend,
            self.rollback,
            self.delete,
        ]
        try:
            self.snapshot()
            while True:
                action = self.ledger.chance.choice(actions)
                action()
                self.done.add(action.__name__)
        except ConnectionLostError:
            pass
        except Exception as error:  # noqa: BLE001 -- for the test to raise
            self.failure = error

    def snapshot(self) -> None:
        """Change the machine, and keep it."""
        ledger = self.ledger
        ledger.value = ledger.chance.randbytes(100_000)
        for path in (ON_DISK, IN_MEMORY):
            self.sandbox.files.write(path, ledger.value)
        ledger.number += 1
        name = f"s{ledger.number}"
        ledger.in_doubt[name] = ledger.value
        self.sandbox.snapshot(name)
        ledger.kept[name] = ledger.in_doubt.pop(name)
        self.past.append(name)

    def fork(self) -> None:
        """Make a sibling, which has what the machine has."""
        (sibling,) = self.sandbox.fork(1)
        check(sibling, self.ledger.value)
        sibling.destroy()

    def start_another(self) -> None:
        """Start another machine, while the first one is forked."""
        other = threading.Thread(target=self._other)
        other.start()
        try:
            self.fork()
        finally:
            other.join()

    def _other(self) -> None:
        with suppress(ConnectionLostError):
            self.manager.start_sandbox("other").destroy()

    def suspend(self) -> None:
        """Keep the machine on disk, and let it go on."""
        self.sandbox.suspend()
        self.sandbox.resume()
        check(self.sandbox, self.ledger.value)

    def rollback(self) -> None:
        """Take the machine back to one of its snapshots."""
        target = self.ledger.chance.choice(self.past)
        self.sandbox.rollback(target)
        self.past = self.past[: self.past.index(target) + 1]
        self.ledger.value = self.ledger.kept[target]
        check(self.sandbox, self.ledger.value)

    def delete(self) -> None:
        """Delete a snapshot, and with it what only that needed."""
        one = self.ledger.any_kept()
        if one is not None and one != self.past[-1]:
            self.ledger.in_doubt[one] = self.ledger.kept.pop(one)
            self.manager.snapshots.delete(one)
            del self.ledger.in_doubt[one]
            self.past = [name for name in self.past if name != one]


def check(sandbox: Sandbox, value: bytes) -> None:
    """Compare what a machine holds on its disk and in its memory."""
    for path in (ON_DISK, IN_MEMORY):
        assert sandbox.files.read(path) == value, path


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_moment(template_state: Path, kills: int) -> None:
    """Amid starts, snapshots, forks, suspensions: each snapshot that was told of comes back."""
    config = write_config(template_state, "merge_layers = 2")
    ledger = Ledger(random.Random(kills))
    done: set[str] = set()
    for _ in range(kills):
        with (
            started_daemon(template_state, f"--config={config}") as daemon,
            SandboxManager(socket=daemon.socket) as manager,
        ):
            ledger.settle(manager)
            former = ledger.any_kept()
            if former is None:
                sandbox = manager.start_sandbox("box")
            else:
                sandbox = manager.restore("box", former)
                check(sandbox, ledger.kept[former])
            work = Work(manager, sandbox, ledger)
            work.start()
            time.sleep(ledger.chance.uniform(0, LONGEST_LIFE))
            daemon.process.kill()
            work.join()
            done |= work.done
            if work.failure is not None:
                raise work.failure
        wait_until(lambda: not processes_naming(template_state), 10)
    with (
        started_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        ledger.settle(manager)
        for one, value in ledger.kept.items():
            with manager.restore("woken", one) as woken:
                check(woken, value)
        for one in ledger.kept:
            manager.snapshots.delete(one)
        wait_until(lambda: not daemon.stored_files(), 60)
    assert kills < 20 or done == {
        "snapshot",
        "fork",
        "start_another",
        "suspend",
        "rollback",
        "delete",
    }
