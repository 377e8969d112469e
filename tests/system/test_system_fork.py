"""Forks, and what every new VM has of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from in_guest import Background, ask, clock_error, counted, python, start_counter
from real_daemon import Daemon, wait_until

from arrakis import (
    AlreadyExistsError,
    InvalidParamsError,
    Sandbox,
    SandboxManager,
)
from arrakis.tree import TreeNode

pytestmark = pytest.mark.vm

# All that a VM has of its own, as it looks from inside, in one call: calls cost time.
OWN = """
import json, os, pathlib, socket, subprocess
def read(path):
    return pathlib.Path(path).read_bytes().hex()
print(json.dumps({
    "hostname": socket.gethostname(),
    "etc/hostname": pathlib.Path("/etc/hostname").read_text().strip(),
    "hosts": socket.gethostbyname(socket.gethostname()),
    "machine-id": pathlib.Path("/etc/machine-id").read_text().strip(),
    "urandom": open("/dev/urandom", "rb").read(32).hex(),
    "getrandom": os.getrandom(32).hex(),
    "random-seed": read("/var/lib/systemd/random-seed"),
    "ssh key": read("/etc/ssh/ssh_host_ed25519_key"),
    "ssh public key": pathlib.Path("/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[1],
    "other ssh keys": sorted(p.name for p in pathlib.Path("/etc/ssh").glob("ssh_host_*")),
    "derived": subprocess.run(["ssh-keygen", "-y", "-f", "/etc/ssh/ssh_host_ed25519_key"],
                              capture_output=True, text=True).stdout.split()[1],
    "modes": [os.stat(p).st_mode & 0o777 for p in (
        "/etc/ssh/ssh_host_ed25519_key", "/var/lib/systemd/random-seed")],
}))
"""

UNIQUE = ["hostname", "machine-id", "urandom", "getrandom", "random-seed", "ssh key"]


@contextmanager
def family(manager: SandboxManager, name: str, count: int) -> Iterator[list[Sandbox]]:
    """A VM and its forks."""
    with manager.start_sandbox(name) as source:
        yield [source, *source.fork(count)]


def test_fork_contract(manager: SandboxManager) -> None:
    """Siblings differ in every row of the contract: name, machine id, randomness, SSH keys."""
    with family(manager, "Fork_contract.1", 2) as siblings:
        looks: list[dict[str, Any]] = [python(sibling, OWN) for sibling in siblings]
    for key in UNIQUE:
        assert len({look[key] for look in looks}) == 3, key
    for sibling, look in zip(siblings, looks, strict=True):
        expected = sibling.name.replace("_", "-").replace(".", "-")
        assert look["hostname"] == look["etc/hostname"] == expected
        assert look["hosts"] == "127.0.1.1"
        assert len(look["machine-id"]) == 32
        assert look["derived"] == look["ssh public key"]
        assert look["other ssh keys"] == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]
        assert look["modes"] == [0o600, 0o600]
    assert [sibling.name for sibling in siblings[1:]] == [
        "Fork_contract.1-fork1",
        "Fork_contract.1-fork2",
    ]


def test_randomness_of_programs(manager: SandboxManager) -> None:
    """The same program, at the same point, gets other random numbers in every sibling."""
    program = (
        "import os, time, pathlib\n"
        "pathlib.Path('ready').touch()\n"
        "while not os.path.exists('go'): time.sleep(0.05)\n"
        "pathlib.Path('drawn').write_text(os.urandom(16).hex())\n"
    )
    with manager.start_sandbox("random") as source:
        source.files.write("draw.py", program)
        source.run_cmd("exec python3 -S draw.py", blocking=False)
        wait_until(lambda: source.files.exists("ready"), 20)
        siblings = [source, *source.fork(2)]
        for sibling in siblings:
            sibling.files.write("go", "")
        for sibling in siblings:
            wait_until(lambda: sibling.files.exists("drawn"), 20)  # noqa: B023
            wait_until(lambda: sibling.files.stat("drawn").size == 32, 5)  # noqa: B023
        assert len({sibling.files.read("drawn") for sibling in siblings}) == 3


def test_what_is_kept(manager: SandboxManager) -> None:
    """Siblings have the source's processes, memory, files and environment, each its own copy."""
    with manager.start_sandbox("keeper") as source:
        counter = start_counter(source)
        source.files.write("/root/data", bytes(range(256)) * 1000)
        source.files.write("/dev/shm/memory", "in memory only")
        source.run_cmd("MARK=kept exec sleep 1000", blocking=False)
        wait_until(lambda: source.run(["pgrep", "-x", "sleep"]).ok, 10)
        environment = "cat /proc/$(pgrep -x sleep)/environ | tr '\\0' '\\n' | grep MARK"
        for sibling in source.fork(2):
            assert sibling.files.read("/root/data") == bytes(range(256)) * 1000
            assert sibling.files.read_text("/dev/shm/memory") == "in memory only"
            assert sibling.files.read_text("counter.pid") == str(counter)
            assert ask(sibling, environment) == "MARK=kept"
            first = counted(sibling)
            wait_until(lambda: len(counted(sibling)) > len(first), 10)  # noqa: B023
            numbers = counted(sibling)
            assert numbers == list(range(len(numbers)))
            sibling.files.write("/root/data", "own")
        assert source.files.read("/root/data") == bytes(range(256)) * 1000
        numbers = counted(source)
        assert numbers == list(range(len(numbers)))


def test_clock(manager: SandboxManager) -> None:
    """The wall clocks of a new VM, its snapshot's restores and its forks are the host's."""
    with manager.start_sandbox("clocks") as source:
        assert clock_error(source) < 0.1
        source.snapshot("clocks")
        source.pause()
        time.sleep(1.5)
        (paused,) = source.fork(1)
        assert clock_error(paused) < 0.1
        with manager.restore("later", "clocks") as restored:
            assert clock_error(restored) < 0.1


def test_one_pause(manager: SandboxManager) -> None:
    """All forks are of one instant."""
    with manager.start_sandbox("instant") as source:
        start_counter(source)
        siblings = source.fork(3)
        for sibling in siblings:
            sibling.pause()
        heads = []
        for sibling in siblings:
            sibling.resume()
            pid = sibling.files.read_text("counter.pid")
            heads.append((pid, sibling.files.stat("counter.pid").mtime))
        assert len(set(heads)) == 1
        assert manager.snapshots.list() == []


IMPOSSIBLE = [
    (["fresh-1", "taken", "fresh-2"], AlreadyExistsError, "taken"),
    (["fresh-1", "source", "fresh-2"], AlreadyExistsError, "source"),
    (["fresh-1", "fresh-2", "fresh-1"], AlreadyExistsError, "fresh-1"),
    (["fresh-1", "../escape", "fresh-2"], InvalidParamsError, "names"),
    (["fresh-1", "fresh-2"], InvalidParamsError, "names"),
    (["fresh-1", "fresh-2", "", "x"], InvalidParamsError, "names"),
]


def test_all_or_nothing(manager: SandboxManager, daemon: Daemon) -> None:
    """If one of three forks cannot be, none is started, none is left, and the source goes on."""
    with manager.start_sandbox("source") as source, manager.start_sandbox("taken"):
        before = daemon.footprint()
        for names, error, named in IMPOSSIBLE:
            with pytest.raises(error, match=named):
                source.fork(3, names)
            assert sorted(sandbox.name for sandbox in manager.list_all()) == ["source", "taken"]
            assert manager.snapshots.list() == []
            after = daemon.footprint()
            assert (after.processes, after.files) == (before.processes, before.files)
        assert ask(source, "echo going on") == "going on"


def test_longest_name(manager: SandboxManager) -> None:
    """The forks of a VM with the longest name there is have names that can be used."""
    with manager.start_sandbox("n" * 63) as source:
        forks = source.fork(2)
        assert {len(fork.name) for fork in forks} == {63}
        for fork in forks:
            fork.destroy()


def test_forks_at_once(manager: SandboxManager, daemon: Daemon) -> None:
    """Two forks of one VM at once both come, with names that do not collide."""
    with manager.start_sandbox("twice") as source:
        tries = [Background(lambda: source.fork(2)) for _ in range(2)]
        names = [sandbox.name for one in tries for sandbox in one.wait()]
        assert len(set(names)) == 4
        assert len(daemon.vmm_pids()) == 5
        assert manager.snapshots.list() == []


def test_fork_of_forks(manager: SandboxManager) -> None:
    """A fork can be forked and snapshotted when its source is long gone."""
    with manager.start_sandbox("root") as source:
        source.files.write("/root/generation", "0")
        (current,) = source.fork(1, ["generation-1"])
    for number in range(2, 4):
        assert current.files.read_text("/root/generation") == str(number - 2)
        current.files.write("/root/generation", str(number - 1))
        (child,) = current.fork(1, [f"generation-{number}"])
        current.destroy()
        current = child
    current.snapshot("last")
    with manager.restore("woken", "last") as woken:
        assert woken.files.read_text("/root/generation") == "2"
        assert manager.snapshots.info("last").parent is None


def tree_of(manager: SandboxManager, sandbox: Sandbox) -> TreeNode:
    """The tree in which a machine stands."""
    template = sandbox.info()["template"]
    (tree,) = (tree for tree in manager.snapshots.tree() if tree.id == template)
    return tree


def test_tree(manager: SandboxManager) -> None:
    """Machines and snapshots stand where they came from, in the tree as in their lives."""
    with manager.start_sandbox("root") as root:
        root.snapshot("first")
        restored = manager.restore("restored", "first")
        restored.snapshot("second")
        manager.start_sandbox("fresh")
        tree = tree_of(manager, root)
        names = {machine.name for machine in tree.machines}
        (first,) = tree.children
        (second,) = first.children
        assert (tree.kind, names) == ("template", {"fresh"})
        assert (first.id, [one.name for one in first.machines]) == ("first", ["root"])
        assert (second.id, [one.name for one in second.machines]) == ("second", ["restored"])
        manager.snapshots.delete("first")
        tree = tree_of(manager, root)
        assert [child.id for child in tree.children] == ["second"]
