"""Long lines of snapshots: each holds what was there, in files that are merged meanwhile."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import define
from guest_model import Model, change, check, start_keeper
from real_daemon import Daemon, running_daemon, wait_until, write_config

from arrakis import IntegrityError, Sandbox, SandboxManager

pytestmark = pytest.mark.vm


@contextmanager
def merging_daemon(state: Path, merge_layers: int) -> Iterator[tuple[Daemon, SandboxManager]]:
    """Run a daemon that merges a certain number of layers."""
    config = write_config(state, f"merge_layers = {merge_layers}")
    with (
        running_daemon(state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        manager.list_all()  # so that its connection counts as one that was there before
        yield daemon, manager


def layers_of(state: Path, snapshot_id: str) -> list[str]:
    """The layers that a snapshot stands on, from the bottom."""
    manifest = json.loads((state / "snapshots" / snapshot_id / "manifest.json").read_text())
    return [layer["id"] for layer in manifest["layers"]]


def settled(daemon: Daemon) -> None:
    """Wait until no layer is being merged."""
    wait_until(lambda: not list((daemon.state / "scratch").iterdir()), 60)


def test_long_line(template_state: Path) -> None:
    """Of a long line of snapshots each comes back whole, from few layers, whatever is deleted."""
    chance = random.Random(5)
    models: dict[str, Model] = {}
    with merging_daemon(template_state, 3) as (daemon, manager):
        before = daemon.stored_files()
        with manager.start_sandbox("line") as sandbox:
            model = start_keeper(sandbox)
            for number in range(14):
                model = change(sandbox, change(sandbox, model, chance), chance)
                models[sandbox.snapshot(f"line-{number}")] = model
            check(sandbox, model)
        wait_until(
            lambda: max(len(layers_of(daemon.state, one)) for one in models) <= 1 + 2 * 3, 60
        )
        settled(daemon)
        kept = dict(models)
        for doomed in chance.sample(sorted(kept), 9):
            manager.snapshots.delete(doomed)
            del kept[doomed]
        for one, expected in kept.items():
            with manager.restore("back", one) as back:
                check(back, expected)
        for one in kept:
            manager.snapshots.delete(one)
        wait_until(lambda: daemon.stored_files() == before, 60)


def test_forked_again_and_again(template_state: Path) -> None:
    """A machine that is forked many times stands on few layers, though no snapshot is kept."""
    with merging_daemon(template_state, 2) as (daemon, manager):
        before = daemon.stored_files()
        with manager.start_sandbox("tree") as sandbox:
            for number in range(6):
                sandbox.files.write(f"/root/{number}", str(number).encode())
                for child in sandbox.fork(1):
                    child.destroy()
                settled(daemon)
            last = sandbox.snapshot("last")
        wait_until(lambda: len(layers_of(daemon.state, last)) <= 1 + 3, 60)
        settled(daemon)
        with manager.restore("back", last) as back:
            assert [back.files.read_text(f"/root/{n}") for n in range(6)] == list("012345")
        manager.snapshots.delete(last)
        wait_until(lambda: daemon.stored_files() == before, 60)


def test_left_undone(template_state: Path) -> None:
    """What a daemon has not merged, the next one merges; nothing that it lists is lost by that."""
    with merging_daemon(template_state, 100) as (daemon, manager):
        with manager.start_sandbox("long") as sandbox:
            for number in range(4):
                sandbox.files.write(f"/root/{number}", str(number).encode())
                sandbox.snapshot(f"long-{number}")
        assert len(layers_of(daemon.state, "long-3")) == 5
    with merging_daemon(template_state, 3) as (daemon, manager):
        wait_until(lambda: len(layers_of(daemon.state, "long-3")) == 2, 60)
        for one in ("long-0", "long-1", "long-2"):
            manager.snapshots.delete(one)
        with manager.restore("back", "long-3") as back:
            assert [back.files.read_text(f"/root/{n}") for n in range(4)] == list("0123")
        pages = daemon.state / "layers" / layers_of(daemon.state, "long-3")[1] / "pages"
        content = pages.read_bytes()
        pages.write_bytes(content[:-1])
        with pytest.raises(IntegrityError, match=str(pages)):
            manager.restore("back", "long-3")


@define
class Forest:
    """Machines and snapshots, and what each must hold."""

    manager: SandboxManager
    chance: random.Random
    machines: dict[str, tuple[Sandbox, Model]]
    snapshots: dict[str, Model]
    number: int = 0

    def step(self) -> None:
        """Do something at random."""
        self.number += 1
        actions = [self.change, self.change, self.snapshot, self.restore, self.destroy]
        if len(self.snapshots) > 6:
            actions += [self.delete, self.delete]
        self.chance.choice(actions)()

    def change(self) -> None:
        name = self.chance.choice(sorted(self.machines))
        sandbox, model = self.machines[name]
        self.machines[name] = sandbox, change(sandbox, model, self.chance)

    def snapshot(self) -> None:
        sandbox, model = self.machines[self.chance.choice(sorted(self.machines))]
        self.snapshots[sandbox.snapshot(f"s{self.number}")] = model

    def restore(self) -> None:
        if self.snapshots:
            one = self.chance.choice(sorted(self.snapshots))
            sandbox = self.manager.restore(f"m{self.number}", one)
            self.machines[sandbox.name] = sandbox, self.snapshots[one]
            check(*self.machines[sandbox.name])
            if len(self.machines) > 3:
                self.destroy()

    def destroy(self) -> None:
        if len(self.machines) > 1:
            sandbox, model = self.machines.pop(self.chance.choice(sorted(self.machines)))
            check(sandbox, model)
            sandbox.destroy()

    def delete(self) -> None:
        one = self.chance.choice(sorted(self.snapshots))
        self.manager.snapshots.delete(one)
        del self.snapshots[one]


@pytest.mark.parametrize("rounds", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_order(template_state: Path, rounds: int) -> None:
    """Snapshots, restores and deletions in any order: no difference, and nothing is left."""
    with (
        merging_daemon(template_state, 3) as (daemon, manager),
        daemon.leaves_nothing(),  # of files, either: so disk use returns to what it was
    ):
        first = manager.start_sandbox("m0")
        forest = Forest(manager, random.Random(rounds), {}, {})
        forest.machines["m0"] = first, start_keeper(first)
        for _ in range(rounds):
            forest.step()
        for sandbox, model in forest.machines.values():
            check(sandbox, model)
        manager.destroy_all()
        for one in list(forest.snapshots):
            with manager.restore("last", one) as last:
                check(last, forest.snapshots[one])
            manager.snapshots.delete(one)
        settled(daemon)
