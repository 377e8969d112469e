"""Snapshots and what comes back from them: processes, memory, files, as they were."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from pathlib import Path

import pytest
from in_guest import Background, ask, counted, over_both, python, start_counter
from real_daemon import Daemon, wait_until

from arrakis import (
    AlreadyExistsError,
    InvalidParamsError,
    NotFoundError,
    Sandbox,
    SandboxManager,
)

pytestmark = pytest.mark.vm

# Holds 50 MiB that no disk has, and tells their checksum whenever it is asked to.
HOLDER = """
import hashlib, json, os, signal
block = os.urandom(2**20 - 1)  # one byte less than pages have: no page is like another
data = (block * 51)[: 50 * 2**20]
def tell(*_):
    with open("told.new", "w") as file:
        json.dump([os.getpid(), hashlib.sha256(data).hexdigest()], file)
    os.rename("told.new", "told")
signal.signal(signal.SIGUSR1, tell)
tell()
while True:
    signal.pause()
"""


def start_holder(sandbox: Sandbox) -> tuple[int, str]:
    """Start a process that holds memory; give its pid and the checksum of what it holds."""
    sandbox.files.write("holder.py", HOLDER)
    sandbox.run_cmd("exec python3 holder.py", blocking=False)
    wait_until(lambda: sandbox.files.exists("told"), 60)
    pid, digest = json.loads(sandbox.files.read_text("told"))
    return pid, digest


def held(sandbox: Sandbox, pid: int) -> tuple[int, str]:
    """Have the process look at its memory again."""
    sandbox.files.remove("told")
    sandbox.run(["kill", "-USR1", str(pid)], check=True)
    wait_until(lambda: sandbox.files.exists("told"), 60)
    pid, digest = json.loads(sandbox.files.read_text("told"))
    return pid, digest


def digests(sandbox: Sandbox) -> str:
    """Checksums of all files of a little project, with modes and times."""
    return ask(sandbox, "cd /root/project && find . -exec stat -c '%n %f %Y' {} + | sort && "
                        "find . -type f | sort | xargs sha256sum")  # fmt: skip


PROJECT = """
import os, pathlib, random
root = pathlib.Path("/root/project")
for number in range(20):
    path = root / f"d{number % 3}" / f"f{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(number).randbytes(number * 5000))
    path.chmod(0o600 + number % 8)
    os.utime(path, (number * 10**6, number * 10**6))
(root / "link").symlink_to("d0/f0")
print("null")
"""


@over_both
def test_back_in_time(manager: SandboxManager) -> None:
    """A program, its memory and its files come back as they were, while their source runs on."""
    with manager.start_sandbox("source") as source:
        python(source, PROJECT)  # not synced: much of it is in the guest's page cache only
        holder, digest = start_holder(source)
        counter = start_counter(source)
        files = digests(source)
        before = counted(source)
        snapshot = source.snapshot("then")
        after = counted(source)

        ask(source, f"rm -r /root/project; kill {holder}; echo x > new; sync")
        began = time.monotonic()
        with manager.restore("restored", snapshot) as restored:
            first = counted(restored)
            assert first == list(range(len(first)))
            most = (time.monotonic() - began) / 0.05  # that it has counted since
            assert before[-1] <= first[-1] <= after[-1] + most + 40
            assert restored.files.read_text("counter.pid") == str(counter)
            assert digests(restored) == files
            assert held(restored, holder) == (holder, digest)
            assert not restored.files.exists("new")
            wait_until(lambda: len(counted(restored)) > len(first) + 5, 20)
            numbers = counted(restored)
            assert numbers == list(range(len(numbers)))
            assert ask(restored, f"kill -0 {counter} && cat /proc/{counter}/comm") == "python3"
            assert not source.files.exists("/root/project")
        numbers = counted(source)
        assert numbers == list(range(len(numbers)))


def test_several_at_once(manager: SandboxManager, daemon: Daemon) -> None:
    """Several restores of one snapshot at once all come up, each its own from then on."""
    with manager.start_sandbox("one") as source:
        source.files.write("mark", "common")
        source.snapshot("many")
    restores = [
        Background(lambda number=number: manager.restore(f"copy-{number}", "many"))
        for number in range(4)
    ]
    copies = [restore.wait() for restore in restores]
    assert len(daemon.vmm_pids()) == 4
    for number, copy in enumerate(copies):
        assert copy.files.read_text("mark") == "common"
        assert copy.info()["snapshot"] == "many"
        copy.files.write("mark", f"own {number}")
    assert [copy.files.read_text("mark") for copy in copies] == [f"own {n}" for n in range(4)]


def test_chain(manager: SandboxManager, daemon: Daemon) -> None:
    """Snapshots of restores of snapshots, five deep, hold each what was there; all can be woken."""
    ids = []
    sandbox = manager.start_sandbox("depth-0")
    for depth in range(1, 6):
        sandbox.files.write(f"/root/depth-{depth}", f"{depth}\n" * 1000)
        sandbox.files.write("/dev/shm/depth", str(depth))
        ids.append(sandbox.snapshot(f"depth-{depth}"))
        sandbox.files.write(f"/root/depth-{depth}", "overwritten later")
        sandbox.destroy()
        sandbox = manager.restore(f"depth-{depth}", ids[-1])
    sandbox.destroy()
    stored = {one.id: one for one in manager.snapshots.list()}
    assert [stored[one].parent for one in ids] == [None, *ids[:-1]]

    manager.snapshots.delete(ids[2])
    assert manager.snapshots.info(ids[3]).parent == ids[1]
    with pytest.raises(NotFoundError, match=ids[2]):
        manager.restore("gone", ids[2])
    for depth in (5, 4, 1):
        with manager.restore(f"back-{depth}", ids[depth - 1]) as back:
            assert back.files.read_text("/dev/shm/depth") == str(depth)
            names = {entry.name for entry in back.files.list("/root") if "depth" in entry.name}
            assert names == {f"depth-{n}" for n in range(1, depth + 1)}
            for earlier in range(1, depth + 1):
                kept = back.files.read_text(f"/root/depth-{earlier}")
                assert kept == f"{earlier}\n" * 1000
    manager.snapshots.delete(ids[0], recursive=True)
    assert manager.snapshots.list() == []


def test_later_writes(manager: SandboxManager) -> None:
    """What a source writes after a snapshot, to disk or memory, is not in its restores."""
    with manager.start_sandbox("writer") as source:
        ask(source, "head -c 3M /dev/zero | tr '\\0' a > /root/big; sync")
        source.snapshot("early")
        ask(source, "head -c 3M /dev/zero | tr '\\0' b > /root/big; sync")
        source.snapshot("late")
        ask(source, "rm /root/big; sync; echo 3 > /proc/sys/vm/drop_caches")
        digest = {
            letter: hashlib.sha256(letter.encode() * 3 * 2**20).hexdigest() for letter in "ab"
        }
        for snapshot, letter in (("early", "a"), ("late", "b"), ("early", "a")):
            with manager.restore(f"of-{snapshot}", snapshot) as restored:
                look = "echo 3 > /proc/sys/vm/drop_caches; sha256sum /root/big"
                assert ask(restored, look).split()[0] == digest[letter]
        assert not source.files.exists("/root/big")


def test_paused(manager: SandboxManager) -> None:
    """A paused VM can be snapshotted and stays paused; the snapshot wakes running."""
    with manager.start_sandbox("sleeper") as source:
        start_counter(source)
        source.pause()
        source.snapshot("asleep")
        source.snapshot("asleep-again")
        assert source.info()["status"] == "PAUSED"
        for snapshot in ("asleep", "asleep-again"):
            with manager.restore("awake", snapshot) as restored:
                assert restored.info()["status"] == "RUNNING"
                numbers = counted(restored)
                wait_until(lambda: len(counted(restored)) > len(numbers), 10)  # noqa: B023
        source.resume()
        numbers = counted(source)
        assert numbers == list(range(len(numbers)))


def test_many_of_one(manager: SandboxManager, daemon: Daemon) -> None:
    """Snapshot after snapshot of one VM costs what has changed, and none disturbs its work."""
    with manager.start_sandbox("often") as source:
        start_counter(source)
        for number in range(8):
            source.snapshot(f"often-{number}")
        numbers = counted(source)
        assert numbers == list(range(len(numbers)))
        stored = manager.snapshots.list()
        assert [one.parent for one in stored] == [None, *(f"often-{n}" for n in range(7))]
        assert statistics.median(one.pause for one in stored) < 5
        last = manager.snapshots.info("often-7")
        assert last.bytes < 64 * 2**20
        assert last.changed_pages * 4096 < last.bytes
        parts = list((daemon.state / "snapshots/often-7").iterdir())
        assert sum(path.stat().st_blocks * 512 for path in parts) < 80 * 2**20


@over_both
def test_traffic_during_snapshot(manager: SandboxManager) -> None:
    """Streams in both directions run through snapshots unharmed, and the snapshot wakes."""
    data = bytes(range(256)) * 16384  # 4 MiB
    with manager.start_sandbox("busy") as source:
        command = ["sh", "-c", "cat | tee /root/copy"]
        calls = [Background(lambda: source.run(command, input=data, check=True)) for _ in range(2)]
        ids = []
        while any(call._thread.is_alive() for call in calls):
            ids.append(source.snapshot(f"busy-{len(ids)}"))
            assert len(ids) < 200
        assert ids
        for call in calls:
            assert call.wait().stdout == data
        with manager.restore("from-busy", ids[0]) as restored:
            assert ask(restored, "echo awake") == "awake"
            assert restored.run(command, input=data).stdout == data


def test_ids(manager: SandboxManager) -> None:
    """A snapshot's id is refused if taken or malformed, and a refusal leaves nothing."""
    with manager.start_sandbox("named") as source:
        chosen = source.snapshot()
        assert chosen.startswith("named-")
        source.snapshot("mine")
        with pytest.raises(AlreadyExistsError, match="mine") as caught:
            source.snapshot("mine")
        assert caught.value.hint
        for bad in ("Mine", "a/b", "../a", ".", "a_b", "-a", "ä", "a" * 64, "a b"):
            with pytest.raises(InvalidParamsError, match="id"):
                source.snapshot(bad)
        assert {one.id for one in manager.snapshots.list()} == {chosen, "mine"}
        with pytest.raises(NotFoundError, match="nothing") as missing:
            manager.restore("other", "nothing")
        assert chosen in (missing.value.hint or "")
        with pytest.raises(AlreadyExistsError, match="named"):
            manager.restore("named", "mine")
        with pytest.raises(NotFoundError):
            manager.snapshots.delete("nothing")
        assert [sandbox.name for sandbox in manager.list_all()] == ["named"]


@over_both
def test_same_id_at_once(manager: SandboxManager) -> None:
    """Of several snapshots under one id at once, one is made and the others are told."""
    with manager.start_sandbox("raced") as source:
        tries = [Background(lambda: source.snapshot("raced")) for _ in range(4)]
        for one in tries:
            one._thread.join()
        errors = [one.error for one in tries if one.error]
        assert [type(error) for error in errors] == [AlreadyExistsError] * 3
        assert len(manager.snapshots.list()) == 1


def test_deleted_under_a_vm(manager: SandboxManager, daemon: Daemon) -> None:
    """A VM goes on when the snapshot that it came from is deleted, and can be snapshotted."""
    with manager.start_sandbox("first") as source:
        source.files.write("/root/kept", "kept")
        source.snapshot("base")
    with manager.restore("second", "base") as restored:
        manager.snapshots.delete("base")
        assert restored.info()["snapshot"] is None
        assert ask(restored, "echo 3 > /proc/sys/vm/drop_caches; cat /root/kept") == "kept"
        restored.snapshot("after")
        assert manager.snapshots.info("after").parent is None
    with manager.restore("third", "after") as again:
        assert again.files.read_text("/root/kept") == "kept"


def test_layers_on_disk(manager: SandboxManager, daemon: Daemon) -> None:
    """Disk layers are found relative to each other: a state directory can be moved."""
    with manager.start_sandbox("layers") as source:
        source.snapshot("layered")
    layer = next(
        path for path in (daemon.state / "layers").iterdir() if path.name in layers_of(daemon)
    )
    header = (layer / "disk.qcow2").read_bytes()[:4096]
    assert b"../../layers/" in header
    assert str(daemon.state).encode() not in header


def layers_of(daemon: Daemon) -> list[str]:
    """The topmost layer of the only snapshot there is."""
    (path,) = (daemon.state / "snapshots").iterdir()
    manifest = json.loads(Path(path / "manifest.json").read_text())
    return [manifest["layers"][-1]["id"]]
