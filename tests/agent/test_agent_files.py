"""Working on files."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from agent_client import Host
from agent_waiting import wait_for

from arrakis_rpc.connection import WINDOW
from arrakis_rpc.errors import CancelledError, FileOperationError, InvalidParamsError
from arrakis_rpc.guest_api import (
    ExecSpec,
    FileList,
    FileListResult,
    FileMkdir,
    FilePath,
    FileRead,
    FileRemove,
    FileStat,
    FileWrite,
)

MIB = 1024 * 1024


def write(host: Host, data: bytes, spec: FileWrite) -> FileStat:
    call_id = host.start_call("file.write", spec)
    host.upload(call_id, "data", data)
    return FileStat(**host.wait_answer(call_id))


def read(host: Host, spec: FileRead) -> tuple[FileStat, bytes]:
    call_id = host.start_call("file.read", spec)
    answer = host.wait_answer(call_id)
    return FileStat(**answer), bytes(host.received[call_id, "data"])


def list_all(host: Host, path: str, limit: int = 1000) -> list[FileStat]:
    entries: list[FileStat] = []
    after = None
    while True:
        answer = host.call("file.list", FileList(path, after, limit))
        page = FileListResult([FileStat(**entry) for entry in answer["entries"]], answer["more"])
        assert len(page.entries) <= limit
        entries += page.entries
        if not page.more:
            return entries
        after = entries[-1].name


@pytest.fixture
def work(host: Host) -> Path:
    host.agent.work_dir.mkdir()
    return host.agent.work_dir


def test_round_trip(host: Host, work: Path) -> None:
    """A large file comes back as it went, with the mode and time that it was given."""
    data = os.urandom(50 * MIB)
    stat = write(host, data, FileWrite("big", mode=0o4750, mtime=1_234_567_890.25))
    assert stat == FileStat("big", "file", len(data), 0o4750, 1_234_567_890.25, 0, 0)
    again, received = read(host, FileRead(str(work / "big")))
    assert again == stat
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 128 * 1024 + 1, WINDOW, WINDOW + 1])
def test_sizes(host: Host, work: Path, size: int) -> None:
    """Files around every border of the protocol keep their length."""
    data = os.urandom(size)
    assert write(host, data, FileWrite("file")).size == size
    assert read(host, FileRead("file"))[1] == data


def test_parts(host: Host, work: Path) -> None:
    """A part of a file is what lies between offset and length, as far as there is one."""
    (work / "file").write_bytes(b"0123456789")
    for offset, length, expected in (
        (3, 4, b"3456"),
        (8, 10, b"89"),
        (4, 0, b""),
        (20, None, b""),
        (9, None, b"9"),
    ):
        assert read(host, FileRead("file", offset, length))[1] == expected


def test_files_of_the_kernel(host: Host) -> None:
    """A file whose size is not known beforehand is read to its end."""
    assert b"MemTotal" in read(host, FileRead("/proc/meminfo"))[1]


def test_mode_and_owner_are_kept(host: Host, work: Path) -> None:
    """A file that is replaced keeps its mode and owner, a new one has the usual mode."""
    (work / "old").touch()
    (work / "old").chmod(0o751)
    os.chown(work / "old", 1, 2)
    stat = write(host, b"new", FileWrite("old"))
    assert (stat.mode, stat.uid, stat.gid) == (0o751, 1, 2)
    assert write(host, b"new", FileWrite("fresh")).mode == 0o644


def test_parents(host: Host, work: Path) -> None:
    """Missing directories above a file are made, or not, as asked."""
    write(host, b"x", FileWrite("a/b/c"))
    assert (work / "a/b/c").read_bytes() == b"x"
    with pytest.raises(FileOperationError, match="/d/e: No such file"):
        write(host, b"x", FileWrite("d/e", parents=False))


def test_append(host: Host, work: Path) -> None:
    """Appending adds to what is there, in place, and makes a missing file."""
    for _ in range(2):
        write(host, b"ab", FileWrite("log", append=True))
    before = (work / "log").stat().st_ino
    (work / "log").chmod(0o600)
    assert write(host, b"c", FileWrite("log", append=True)).mode == 0o600
    assert (work / "log").read_bytes() == b"ababc"
    assert (work / "log").stat().st_ino == before


def test_link_stays_a_link(host: Host, work: Path) -> None:
    """Writing through a link replaces the file behind it."""
    (work / "target").write_bytes(b"old")
    (work / "link").symlink_to("target")
    write(host, b"new", FileWrite("link"))
    assert (work / "link").is_symlink()
    assert (work / "target").read_bytes() == b"new"


def test_longest_name(host: Host, work: Path) -> None:
    """A file may have the longest name there is, though its temporary sibling has a longer one."""
    for name in ("x" * 255, "ä" * 127):
        write(host, b"x", FileWrite(name))
        assert (work / name).exists()


@pytest.mark.parametrize("ending", ["cancel", "resync", "broken"])
@pytest.mark.parametrize("existing", [False, True])
def test_unfinished_write_leaves_nothing(
    host: Host, work: Path, ending: str, existing: bool
) -> None:
    """A write that does not come to its end leaves the directory as it was."""
    if existing:
        (work / "file").write_bytes(b"old")
    before = sorted(work.iterdir())
    call_id = host.start_call("file.write", FileWrite("file"))
    host.send(host.connection.send_data(call_id, "data", bytes(100_000)))
    wait_for(lambda: len(list(work.iterdir())) > len(before))
    if ending == "cancel":
        host.cancel(call_id)
        with pytest.raises(CancelledError):
            host.wait_answer(call_id)
    elif ending == "resync":
        host.open()
    else:
        host.send(b"\xff" * 100)
        wait_for(lambda: sorted(work.iterdir()) == before)
    assert sorted(work.iterdir()) == before
    assert not existing or (work / "file").read_bytes() == b"old"


def test_disk_full(host: Host, tmp_path: Path) -> None:
    """A full disk is reported with the path, and the unfinished file is gone."""
    mount = tmp_path / "small"
    mount.mkdir()
    assert host.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)])[0].exit_code == 0
    try:
        with pytest.raises(FileOperationError, match="small/file: No space left") as failure:
            write(host, bytes(5 * MIB), FileWrite(f"{mount}/file"))
        assert failure.value.detail == {"errno": errno.ENOSPC}
        assert list(mount.iterdir()) == []
        assert write(host, bytes(1000), FileWrite(f"{mount}/file")).size == 1000
    finally:
        assert host.run(["umount", str(mount)])[0].exit_code == 0


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("file.read", FileRead("nosuch"), errno.ENOENT),
        ("file.read", FileRead("directory"), errno.EISDIR),
        ("file.read", FileRead("fifo"), errno.EINVAL),
        ("file.read", FileRead("/dev/zero"), errno.EINVAL),
        ("file.read", FileRead("file", offset=2**63 + 1), errno.EOVERFLOW),
        ("file.read", FileRead("file/x"), errno.ENOTDIR),
        ("file.read", FileRead("x" * 300), errno.ENAMETOOLONG),
        ("file.write", FileWrite("directory"), errno.EISDIR),
        ("file.write", FileWrite("new/"), errno.EISDIR),
        ("file.write", FileWrite("fifo"), errno.EINVAL),
        ("file.write", FileWrite("fifo", append=True), errno.ENXIO),
        ("file.write", FileWrite("/dev/null"), errno.EINVAL),
        ("file.write", FileWrite("/dev/null", append=True), errno.EINVAL),
        ("file.write", FileWrite("file/x"), errno.EEXIST),
        ("file.list", FileList("file"), errno.ENOTDIR),
        ("file.list", FileList("nosuch"), errno.ENOENT),
        ("file.stat", FilePath("nosuch"), errno.ENOENT),
        ("file.mkdir", FileMkdir("directory"), errno.EEXIST),
        ("file.mkdir", FileMkdir("file", parents=True), errno.EEXIST),
        ("file.mkdir", FileMkdir("a/b"), errno.ENOENT),
        ("file.remove", FileRemove("nosuch", recursive=True), errno.ENOENT),
        ("file.remove", FileRemove("full"), errno.ENOTEMPTY),
        ("file.remove", FileRemove("/proc/self/task", recursive=True), errno.EPERM),
    ],
)
def test_errors(host: Host, work: Path, method: str, params: object, code: int) -> None:
    """What cannot be done is refused with its errno and the path, and harms nothing."""
    (work / "directory").mkdir()
    (work / "full").mkdir()
    (work / "full" / "file").touch()
    (work / "file").touch()
    os.mkfifo(work / "fifo")
    before = sorted(work.rglob("*"))
    call_id = host.start_call(method, params)
    with pytest.raises(FileOperationError, match=r"/.*: ") as failure:
        host.wait_answer(call_id)
    assert failure.value.detail == {"errno": code}
    assert (os.strerror(code) in failure.value.message) == (code != errno.EINVAL)
    assert sorted(work.rglob("*")) == before


def test_time_out_of_range(host: Host, work: Path) -> None:
    """A time that no file can have is refused, and the file not written."""
    with pytest.raises(FileOperationError):
        write(host, b"", FileWrite("file", mtime=1e300))
    assert list(work.iterdir()) == []


def test_kinds(host: Host, work: Path) -> None:
    """Each kind of file is told apart, and a link is described itself."""
    (work / "f").write_bytes(b"12345")
    (work / "d").mkdir()
    (work / "l").symlink_to("nowhere")
    os.mkfifo(work / "p")
    entries = list_all(host, ".")
    assert [(entry.name, entry.kind) for entry in entries] == [
        ("d", "directory"),
        ("f", "file"),
        ("l", "symlink"),
        ("p", "other"),
    ]
    assert [entry.target for entry in entries] == [None, None, "nowhere", None]
    assert FileStat(**host.call("file.stat", FilePath("f"))) == entries[1]
    for path, name in (("/", "/"), ("/usr/", "usr"), (".", work.name)):
        assert host.call("file.stat", FilePath(path))["name"] == name


def test_names_that_are_not_utf8(host: Host, work: Path) -> None:
    """A name of any bytes can be listed, written, read and removed."""
    name = os.fsdecode(b"\xff\xc3-\x80 \n")
    assert write(host, b"data", FileWrite(name)).name == name
    assert [os.fsencode(path.name) for path in work.iterdir()] == [b"\xff\xc3-\x80 \n"]
    assert [entry.name for entry in list_all(host, ".")] == [name]
    assert read(host, FileRead(name))[1] == b"data"
    with pytest.raises(FileOperationError) as failure:
        host.call("file.stat", FilePath(name + "\udcfe"))
    assert name in failure.value.message
    host.call("file.remove", FileRemove(name))
    assert list(work.iterdir()) == []


def test_pages(host: Host, work: Path) -> None:
    """A directory is listed in pages, each entry once, in order."""
    names = sorted(f"file-{number}" for number in range(1234))
    for name in names:
        (work / name).touch()
    for limit in (100, 617, 1000):
        assert [entry.name for entry in list_all(host, ".", limit)] == names


def test_page_larger_than_a_frame(host: Host, work: Path) -> None:
    """A page whose entries would not fit into a frame is made shorter."""
    for number in range(400):
        (work / f"{number:0255}").symlink_to("x" * 4000)
    entries = list_all(host, ".")
    assert len(entries) == 400
    assert all(len(entry.target or "") == 4000 for entry in entries)


def test_empty_directory(host: Host, work: Path) -> None:
    """A directory without entries has one page without any."""
    assert list_all(host, ".") == []


def test_mkdir(host: Host, work: Path) -> None:
    """A directory gets exactly its mode; an existing one is fine if parents are."""
    stat = FileStat(**host.call("file.mkdir", FileMkdir("a/b", mode=0o777, parents=True)))
    assert (stat.name, stat.kind, stat.mode) == ("b", "directory", 0o777)
    stat = FileStat(**host.call("file.mkdir", FileMkdir("a/b", mode=0o700, parents=True)))
    assert stat.mode == 0o777
    assert (work / "a").stat().st_mode & 0o777 == 0o755


def test_remove(host: Host, work: Path) -> None:
    """Files, links and empty directories are removed, a link's target is not."""
    (work / "d").mkdir()
    (work / "f").touch()
    (work / "l").symlink_to(work / "d")
    host.call("file.remove", FileRemove("l", recursive=True))
    host.call("file.remove", FileRemove("f"))
    assert [path.name for path in work.iterdir()] == ["d"]
    host.call("file.remove", FileRemove("d"))
    assert list(work.iterdir()) == []


def test_remove_tree(host: Host, work: Path, tmp_path: Path) -> None:
    """A tree of any depth is removed, and nothing that its links point to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (work / "-tree").mkdir()
    deep = "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')"
    host.run(["python3", "-c", deep], cwd="-tree")
    (work / "-tree" / "link").symlink_to(outside)
    try:
        host.call("file.remove", FileRemove("-tree", recursive=True))
        assert list(work.iterdir()) == []
    finally:  # pytest's own removal of old directories does not reach that deep
        subprocess.run(["rm", "-rf", work], check=True)
    assert (outside / "precious").exists()


def test_others_run_meanwhile(host: Host, work: Path) -> None:
    """A transfer that waits for its reader holds up nobody else."""
    (work / "big").write_bytes(bytes(20 * MIB))
    reading = host.start_call("file.read", FileRead("big"))
    host.stalled.add(reading)
    host.wait(lambda: len(host.received[reading, "data"]) == WINDOW)
    writing = host.start_call("file.write", FileWrite("other"))
    for _ in range(10):
        assert host.run(["echo", "x"])[1] == b"x\n"
    host.stalled.clear()
    host.consume(reading, "data", WINDOW)
    host.upload(writing, "data", b"y")
    host.wait_answer(writing)
    host.wait_answer(reading)
    assert len(host.received[reading, "data"]) == 20 * MIB


def test_bad_paths(host: Host) -> None:
    """A path that cannot be one is refused as a parameter."""
    for path in ("", "a\0b", "x" * 5000):
        with pytest.raises(InvalidParamsError, match="path"):
            host.call("file.stat", {"path": path})


def test_no_descriptor_is_kept(host: Host, work: Path) -> None:
    """After transfers, finished, failed and cancelled, the agent has what it had open."""
    write(host, b"x", FileWrite("file"))
    before = host.agent.descriptors()
    for number in range(50):
        write(host, b"x", FileWrite(f"file-{number % 5}"))
        read(host, FileRead("file"))
        for call in ("file.write", "file.read"):
            call_id = host.start_call(call, {"path": "file"})
            host.cancel(call_id)
            if call == "file.write":
                with pytest.raises(CancelledError):
                    host.wait_answer(call_id)
    host.exec_result(host.start_exec(ExecSpec(argv=["true"])))
    assert host.agent.descriptors() == before
