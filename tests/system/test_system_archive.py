"""Snapshots that are exported, and imported by another daemon."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from in_guest import counted, over_both, start_counter
from real_daemon import (
    Daemon,
    files_below,
    passable_directory,
    running_daemon,
    wait_until,
)
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError

from arrakis import (
    AlreadyExistsError,
    ArrakisError,
    IntegrityError,
    InvalidParamsError,
    SandboxManager,
    UnsupportedError,
)

pytestmark = pytest.mark.vm

MAGIC = b"arrakis-snapshot 1\n"


@pytest.fixture
def elsewhere() -> Iterator[SandboxManager]:
    """Another daemon, with nothing in its state directory."""
    with (
        passable_directory() as directory,
        running_daemon(directory / "elsewhere") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        manager.list_all()
        yield manager


@pytest.fixture
def archive(manager: SandboxManager, tmp_path: Path) -> Path:
    """The second of two snapshots of a machine, exported; the machine is gone."""
    with manager.start_sandbox("box") as sandbox:
        sandbox.files.write("/root/step", b"1")
        start_counter(sandbox)
        sandbox.snapshot("step1", label="the first")
        sandbox.files.write("/root/step", b"2")
        sandbox.files.write("/root/random", random.Random(3).randbytes(3_000_000))
        sandbox.snapshot("step2")
    manager.snapshots.export("step2", tmp_path / "step2.arrakis")
    return tmp_path / "step2.arrakis"


def repacked(archive: Path, change: Any, *, whole: bool = False) -> Path:
    """Make an archive whose contents are other ones; its files only if it is to be whole."""
    packed = archive.read_bytes()[len(MAGIC) :]
    data = ZstdDecompressor().stream_reader(io.BytesIO(packed))
    length, _ = struct.unpack(">I32s", data.read(36))
    contents = json.loads(data.read(length))
    change(contents)
    text = json.dumps(contents).encode()
    head = struct.pack(">I", len(text)) + hashlib.sha256(text).digest()
    body = head + text + (data.read() if whole else b"")
    forged = archive.with_name("forged.arrakis")
    forged.write_bytes(MAGIC + ZstdCompressor(write_checksum=True).compress(body))
    return forged


def test_to_another_daemon(archive: Path, elsewhere: SandboxManager) -> None:
    """A snapshot wakes elsewhere, on a template that it brings along, with all its ancestors."""
    imported = elsewhere.snapshots.import_(archive)
    assert (imported.id, imported.new, imported.present) == ("step2", ["step1", "step2"], [])
    assert [(one.id, one.parent) for one in elsewhere.snapshots.list()] == [
        ("step1", None),
        ("step2", "step1"),
    ]
    assert elsewhere.snapshots.info("step1").label == "the first"
    with elsewhere.restore("woken", "step2") as woken:
        assert woken.files.read("/root/step") == b"2"
        assert woken.files.read("/root/random") == random.Random(3).randbytes(3_000_000)
        numbers = counted(woken)
        wait_until(lambda: len(counted(woken)) > len(numbers), 20)
        woken.rollback("step1")
        assert woken.files.read("/root/step") == b"1"
        woken.snapshot("further")
    again = elsewhere.snapshots.import_(archive)
    assert (again.new, again.present) == ([], ["step1", "step2"])
    assert archive.stat().st_size < 150 * 2**20
    for one in ("step1", "step2"):
        elsewhere.snapshots.delete(one)
    with elsewhere.restore("woken", "further") as woken:
        assert woken.files.read("/root/step") == b"1"
    elsewhere.snapshots.delete("further")
    (template,) = elsewhere.templates.list()
    assert template.id.startswith("imported-")
    elsewhere.templates.delete(template.id)


@over_both
def test_back_where_it_was(manager: SandboxManager, archive: Path, daemon: Daemon) -> None:
    """What was deleted comes back on the template that is there, and shares what is there."""
    before = files_below(daemon.state, "templates")
    manager.snapshots.delete("step2")
    imported = manager.snapshots.import_(archive)
    assert (imported.new, imported.present) == (["step2"], ["step1"])
    assert files_below(daemon.state, "templates") == before
    with manager.restore("woken", "step2") as woken:
        assert woken.files.read("/root/step") == b"2"
    manager.snapshots.delete("step1")
    manager.snapshots.delete("step2")
    assert manager.snapshots.import_(archive).new == ["step1", "step2"]
    manager.snapshots.delete("step2")
    with manager.start_sandbox("box") as sandbox:
        sandbox.snapshot("step2")
        with pytest.raises(AlreadyExistsError, match="step2"):
            manager.snapshots.import_(archive)


def test_by_http(
    manager: SandboxManager, archive: Path, http_port: int, token: str, tmp_path: Path
) -> None:
    """REST gives and takes the same bytes as the protocol."""
    base = f"http://127.0.0.1:{http_port}/v1/snapshots"
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    asked = urllib.request.Request(f"{base}/step2/archive", headers=headers)
    with urllib.request.urlopen(asked) as answer:
        assert answer.read() == archive.read_bytes()
    manager.snapshots.delete("step2")
    sent = urllib.request.Request(base, archive.read_bytes(), headers, method="POST")
    with urllib.request.urlopen(sent) as answer:
        assert json.load(answer) == {"id": "step2", "new": ["step2"], "present": ["step1"]}
    junk = urllib.request.Request(base, b"junk", headers, method="POST")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(junk)


def unpacked(archive: bytes) -> bytes | None:
    """What is packed in an archive; None if nothing can be."""
    try:
        return ZstdDecompressor().decompressobj().decompress(archive.removeprefix(MAGIC))
    except ZstdError:
        return None


def test_damaged(empty: SandboxManager, archive: Path, tmp_path: Path) -> None:
    """Cut short or changed by one bit: refused, and nothing of it is left."""
    content = archive.read_bytes()
    chance, broken = random.Random(7), tmp_path / "broken"
    damages = [content[:10], content[: len(content) // 2], content[:-10], b""]
    while len(damages) < 12:
        place = chance.randrange(len(content))
        flipped = bytes([content[place] ^ 1 << chance.randrange(8)])
        damage = content[:place] + flipped + content[place + 1 :]
        if unpacked(damage) != unpacked(content):  # what is packed can be said in several ways
            damages.append(damage)
    for damage in damages:
        broken.write_bytes(damage)
        with pytest.raises(ArrakisError) as refused:
            empty.snapshots.import_(broken)
        assert isinstance(refused.value, (IntegrityError, InvalidParamsError, UnsupportedError)), (
            refused.value
        )


Change = Callable[[Any], None]


def put(*path: Any, value: Any) -> Change:
    """Make a change of one thing in an archive's contents."""

    def change(contents: Any) -> None:
        place = contents
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def shape(name: str, value: Any) -> Change:
    """Make a change of the shape that all manifests have."""

    def change(contents: Any) -> None:
        for manifest in (contents["template"], *contents["snapshots"]):
            manifest["shape"][name] = value

    return change


def rename_file(contents: Any) -> None:
    """Call a file by a path."""
    files = contents["snapshots"][1]["layers"][-1]["files"]
    files["../../../../etc/cron.d/evil"] = files.pop("disk.qcow2")


OTHER = "ab" * 32
FOREIGN: list[tuple[Change, str]] = [
    (put("snapshots", 0, "format_version", value=99), "format 99"),
    (shape("vmm_version", "0.1"), "qemu 0.1"),
    (shape("accelerator", "kvm"), "kvm"),
    (shape("network", "none"), "network 'none'"),
    (shape("image_digest", OTHER), "image 'base'"),
    (put("cpu", value="another"), "processor"),
]
TRAPS: list[Change] = [
    put("snapshots", 0, "id", value="../../../tmp/evil"),
    put("snapshots", 1, "layers", 1, "id", value="../evil"),
    rename_file,
    put("template", "files", "memory", "size", value=2**60),
    put("snapshots", 1, "layers", -1, "files", "disk.qcow2", "size", value=2**50),
    put("snapshots", 1, "files", "device-state", "size", value=-1),
    put("snapshots", 0, "parent", value="step2"),
    put("snapshots", 0, "vm", value="../evil"),
    put("snapshots", 1, "resync_token", value="zz"),
    put("snapshots", value=[]),
    put("snapshots", 0, "suspended", value=True),
    put("more", value=1),
    shape("memory_mib", 2**40),
    shape("image", "\ud800"),
    put("snapshots", 0, "changed_pages", value=2**70),
    put("snapshots", 0, "label", value="\ud800"),
    put("snapshots", 0, "network", "ports", value=[{"guest_port": 80, "host_port": 22}]),
]


@pytest.fixture
def empty(manager: SandboxManager, archive: Path, daemon: Daemon) -> Iterator[SandboxManager]:
    """The daemon that the archive comes from, without its snapshots; nothing may be added."""
    for one in manager.snapshots.list():
        manager.snapshots.delete(one.id)
    before = daemon.footprint()
    yield manager
    after = daemon.footprint()
    assert (after.files, after.stored) == (before.files, before.stored)


def test_not_for_this_host(empty: SandboxManager, archive: Path) -> None:
    """What could not be woken here is refused, with the reason."""
    for change, named in FOREIGN:
        with pytest.raises(UnsupportedError, match=named):
            empty.snapshots.import_(repacked(archive, change))


def test_trap(empty: SandboxManager, archive: Path) -> None:
    """Names that are paths, sizes that cannot be, and manifests that contradict each other."""
    for change in TRAPS:
        with pytest.raises(InvalidParamsError):
            empty.snapshots.import_(repacked(archive, change))
    wrong = put("snapshots", 1, "files", "device-state", "digest", value=OTHER)
    with pytest.raises(IntegrityError, match="device-state"):
        empty.snapshots.import_(repacked(archive, wrong, whole=True))


def test_disk_that_names_a_file_of_the_host(empty: SandboxManager, archive: Path) -> None:
    """A disk whose header names anything but the layer below it is not taken."""
    packed = archive.read_bytes()[len(MAGIC) :]
    data = ZstdDecompressor().stream_reader(io.BytesIO(packed)).read()
    (length,) = struct.unpack_from(">I", data)
    layer = json.loads(data[36 : 36 + length])["snapshots"][0]["layers"][0]["id"]
    own = f"../../layers/{layer}/disk.qcow2".encode()
    assert own in data
    evil = b"/etc/shadow".ljust(len(own), b"\0")
    forged = archive.with_name("forged.arrakis")
    compress = ZstdCompressor(write_checksum=True).compress
    forged.write_bytes(MAGIC + compress(data.replace(own, evil)))
    with pytest.raises(IntegrityError):
        empty.snapshots.import_(forged)
