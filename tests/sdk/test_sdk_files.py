"""Files: what is copied, and what a hostile guest cannot make of it."""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_daemon import GoneError, Peer, Script, Server, answering
from scripted_guest import Guest, stat

from arrakis import ConnectionLostError, FileOperationError, Files, ProtocolError, Transfer
from arrakis_rpc.connection import WINDOW, CallReceived

Start = Callable[[Script], Server]


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def files(scripted: Start, guest: Guest) -> Files:
    return scripted(guest.script).sandbox.files


def test_bytes_text_and_streams_are_written_alike(files: Files, guest: Guest) -> None:
    """Bytes, text and a file object of any length arrive as they are."""
    big = os.urandom(3 * WINDOW + 5)
    files.write("/bytes", b"\0\xff")
    files.write("/text", "Grüße", mode=0o600, mtime=2.5, append=True, parents=False)
    files.write("/stream", io.BytesIO(big))
    files.write("/empty", b"")
    assert guest.files == {
        "/bytes": b"\0\xff",
        "/text": "Grüße".encode(),
        "/stream": big,
        "/empty": b"",
    }
    assert guest.written["/text"] == {
        "path": "/text",
        "mode": 0o600,
        "mtime": 2.5,
        "append": True,
        "parents": False,
    }


def test_files_are_read_whole_in_part_and_in_chunks(files: Files, guest: Guest) -> None:
    """read gives bytes or a range of them, read_text text, open_read chunks."""
    big = os.urandom(2 * WINDOW)
    guest.files |= {"/big": big, "/text": "Grüße".encode()}
    assert files.read("/big") == big
    assert files.read("/big", 10, 20) == big[10:30]
    assert files.read_text("/text") == "Grüße"
    with files.open_read("/big") as chunks:
        assert b"".join(chunks) == big


def test_reading_may_stop_early(files: Files, guest: Guest) -> None:
    """Leaving the block of open_read ends the reading, and other calls go on."""
    guest.files |= {"/big": bytes(50 * WINDOW), "/small": b"x"}
    with files.open_read("/big") as chunks:
        next(iter(chunks))
    assert files.read("/small") == b"x"


def test_guest_that_sends_more_than_was_asked_for_is_refused(files: Files, guest: Guest) -> None:
    """A limit on what is read bounds what is kept, whatever the guest does about it."""
    guest.lie_about_length = True
    guest.files |= {"/big": bytes(2 * WINDOW), "/small": b"small"}
    with pytest.raises(ProtocolError, match="more than the 10 bytes"):
        files.read("/big", 0, 10)
    with files.open_read("/small", 0, 4) as chunks, pytest.raises(ProtocolError):
        list(chunks)
    assert files.read("/small", 0, 5) == b"small"


def test_missing_file_is_an_error_with_its_errno(files: Files) -> None:
    """What the guest's system says is raised with its errno; exists tells it apart."""
    with pytest.raises(FileOperationError, match="No such file") as caught:
        files.read("/none")
    assert caught.value.detail["errno"] == errno.ENOENT
    assert not files.exists("/none")


def test_write_that_the_guest_refuses_stops_reading_its_source(scripted: Start) -> None:
    """When the guest answers before the data is through, no more of it is read."""
    full = FileOperationError("/x: No space left on device", errno=errno.ENOSPC)
    files = scripted(answering(file_write=full)).sandbox.files

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    with pytest.raises(FileOperationError, match="No space left"):
        files.write("/x", Endless())


def test_long_directories_come_in_pages(scripted: Start) -> None:
    """Pages are asked for until there are no more, each after the name before."""
    names = [f"{number:03}" for number in range(25)]

    def page(_: Peer, call: CallReceived) -> Any:
        after = call.params["args"].get("after", "")
        rest = [name for name in names if name > after]
        return {"entries": [stat(name) for name in rest[:10]], "more": len(rest) > 10}

    files = scripted(answering(file_list=page)).sandbox.files
    assert [entry.name for entry in files.list("/")] == names


@pytest.mark.parametrize("entries", [[], [stat("same")]])
def test_directory_without_an_end_is_refused(
    scripted: Start, entries: list[dict[str, Any]]
) -> None:
    """A guest that always promises another page does not keep us busy for ever."""
    answer = {"entries": entries, "more": True}
    with pytest.raises(ProtocolError, match="without an end"):
        scripted(answering(file_list=answer)).sandbox.files.list("/")


def test_tree_goes_up_with_modes_and_times(files: Files, guest: Guest, tmp_path: Path) -> None:
    """A directory is copied with all below it; what is no file is named, not followed."""
    source = tmp_path / "tree"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "sub" / "run.sh").write_bytes(b"#!")
    (source / "sub" / "run.sh").chmod(0o755)
    os.utime(source / "sub" / "run.sh", (5, 5))
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    seen: list[Transfer] = []
    done = files.upload(source, "/up", seen.append)
    assert guest.files == {"/up/sub/run.sh": b"#!"}
    assert {"/up", "/up/sub", "/up/sub/empty"} <= guest.listings.keys()
    assert guest.written["/up/sub/run.sh"]["mode"] == 0o755
    assert guest.written["/up/sub/run.sh"]["mtime"] == 5.0
    assert (done.files, done.bytes, done.total) == (1, 2, 2)
    assert done.skipped == [str(source / "link"), str(source / "pipe")]
    assert seen[-1] == done


def test_single_file_goes_up_to_exactly_its_target(
    files: Files, guest: Guest, tmp_path: Path
) -> None:
    """A file, also one behind a link that the caller named, lands where it was sent."""
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    files.upload(tmp_path / "link", "/up/renamed")
    assert guest.files == {"/up/renamed": b"data"}
    with pytest.raises(FileNotFoundError):
        files.upload(tmp_path / "none", "/up")


def test_tree_comes_down_with_modes_and_times(files: Files, guest: Guest, tmp_path: Path) -> None:
    """A directory is copied with all below it; set-user-id bits stay in the guest."""
    guest.add_directory("/d/sub", mode=0o500)
    guest.add("/d/sub/run.sh", b"#!", mode=0o4755, mtime=5.0)
    guest.add("/d/top", b"x")
    guest.listings["/d"].append(stat("link", "symlink", target="/etc/passwd"))
    guest.listings["/d"].append(stat("socket", "other"))
    done = files.download("/d", tmp_path / "down")
    script = tmp_path / "down" / "sub" / "run.sh"
    assert script.read_bytes() == b"#!"
    assert script.stat().st_mode & 0o7777 == 0o755 & ~_umask()
    assert script.stat().st_mtime == 5
    assert (done.files, done.bytes) == (2, 3)
    assert done.skipped == ["/d/link", "/d/socket"]
    assert sorted(path.name for path in (tmp_path / "down").rglob("*")) == ["run.sh", "sub", "top"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", ["..", ".", "", "../../x", "/etc/passwd", "a/b", "a\0b"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_names_that_are_paths_are_refused(
    files: Files, guest: Guest, tmp_path: Path, name: str, kind: str
) -> None:
    """No name out of a guest leads anywhere but into its own directory."""
    guest.listings["/d"] = [stat(name, kind)]
    guest.files[f"/d/{name}"] = b"evil"
    with pytest.raises(ProtocolError, match="not a name"):
        files.download("/d", tmp_path / "deep" / "down")
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["down"]
    assert not (tmp_path / "x").exists()


def test_link_that_becomes_a_directory_is_not_followed(
    files: Files, guest: Guest, tmp_path: Path
) -> None:
    """Links below the target, whoever made them, do not lead a download out of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    target = tmp_path / "down"
    target.mkdir()
    (target / "sub").symlink_to(outside)
    guest.add_directory("/d/sub")
    guest.add("/d/sub/file", b"evil")
    with pytest.raises(NotADirectoryError):
        files.download("/d", target)
    assert (outside / "file").read_bytes() == b"precious"


def test_file_below_the_target_replaces_what_is_in_its_way(
    files: Files, guest: Guest, tmp_path: Path
) -> None:
    """Links and pipes that have a name which the guest chose are replaced, and not written into."""
    (tmp_path / "precious").write_bytes(b"precious")
    target = tmp_path / "down"
    target.mkdir()
    (target / "link").symlink_to("../precious")
    os.mkfifo(target / "pipe")
    guest.add("/d/link", b"new")
    guest.add("/d/pipe", b"new")
    files.download("/d", target)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    for path in target.iterdir():
        assert (path.is_symlink(), path.read_bytes()) == (False, b"new")


# Both as a caller names where a file goes to.
def _download(server: Server, target: str) -> None:
    server.sandbox.files.download("/file", target)


def _export(server: Server, target: str) -> None:
    server.manager.snapshots.export("s", target)


@pytest.fixture(params=[_download, _export])
def fetch(scripted: Start, request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Write b"new" to a target of this host, in either way."""

    def send(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "data", b"new")
        return stat("file") if call.method == "file.read" else {}

    server = scripted(answering(file_stat=stat("file"), file_read=send, snapshot_export=send))
    return lambda target: request.param(server, str(target))


@pytest.mark.parametrize("there", [True, False])
def test_link_that_the_caller_names_is_written_through(
    fetch: Callable[[Any], None], tmp_path: Path, there: bool
) -> None:
    """The file that it leads to is replaced or made, and the link stays."""
    (tmp_path / "sub").mkdir()
    if there:
        (tmp_path / "sub" / "file").write_bytes(b"old")
    (tmp_path / "middle").symlink_to("sub/file")
    (tmp_path / "down").symlink_to(tmp_path / "middle")
    fetch(tmp_path / "down")
    assert (tmp_path / "down").is_symlink()
    assert (tmp_path / "middle").is_symlink()
    assert [path.read_bytes() for path in (tmp_path / "sub").iterdir()] == [b"new"]


def test_pipe_that_the_caller_names_is_written_into(
    fetch: Callable[[Any], None], tmp_path: Path
) -> None:
    """Whoever reads it gets the bytes, and it is a pipe still."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fetch(pipe)
        assert os.read(reader, 100) == b"new"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_device_behind_a_link_is_written_into(fetch: Callable[[Any], None], tmp_path: Path) -> None:
    """What a device refuses is an error, and it stays where it is."""
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "full").symlink_to("/dev/full")
    fetch(tmp_path / "null")
    with pytest.raises(OSError, match="No space left"):
        fetch(tmp_path / "full")
    assert all(path.is_char_device() for path in tmp_path.iterdir() if path.suffix != ".sock")


def test_file_without_a_name_is_written_into(fetch: Callable[[Any], None], tmp_path: Path) -> None:
    """A file that was deleted and is open still is reached by its descriptor, and not renamed."""
    with (tmp_path / "gone").open("w+b") as file:
        (tmp_path / "gone").unlink()
        fetch(f"/proc/self/fd/{file.fileno()}")
        assert file.read() == b"new"
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".sock"]


def test_directory_that_is_named_for_a_file_is_refused(
    fetch: Callable[[Any], None], tmp_path: Path
) -> None:
    """Nothing is written beside a directory to take its place, and it stays."""
    (tmp_path / "down").mkdir()
    with pytest.raises(IsADirectoryError, match="down"):
        fetch(tmp_path / "down")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".sock" and path.is_file()]


def test_endless_nesting_is_refused(scripted: Start, tmp_path: Path) -> None:
    """A guest whose every directory holds another one is cut off at some depth."""
    listing = {"entries": [stat("d", "directory")], "more": False}
    server = scripted(answering(file_list=listing, file_stat=stat("d", "directory")))
    with pytest.raises(ProtocolError, match="nested deeper"):
        server.sandbox.files.download("/d", tmp_path / "down")


@pytest.mark.parametrize("mtime", [-1e18, 1e300, math.nextafter(2**33, math.inf)])
def test_impossible_times_are_not_copied(
    files: Files, guest: Guest, tmp_path: Path, mtime: float
) -> None:
    """A time that this host could not set does not fail the download."""
    guest.add("/d/file", b"x", mtime=mtime)
    files.download("/d", tmp_path / "down")
    assert (tmp_path / "down" / "file").read_bytes() == b"x"


def test_download_that_breaks_leaves_what_was_there(scripted: Start, tmp_path: Path) -> None:
    """Half a file never appears under its name, and nothing is left beside it."""

    def read(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "data", b"half")
        raise GoneError

    server = scripted(answering(file_read=read, file_stat=stat("file")))
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "file").write_bytes(b"old")
    with pytest.raises(ConnectionLostError):
        server.sandbox.files.download("/file", tmp_path / "down" / "file")
    assert [path.read_bytes() for path in (tmp_path / "down").iterdir()] == [b"old"]


def test_link_that_the_caller_names_is_followed_in_the_guest(
    scripted: Start, tmp_path: Path
) -> None:
    """A path that the caller gives may be a link: the guest knows where it leads."""

    def tell(_: Peer, call: CallReceived) -> Any:
        path = call.params["args"]["path"]
        return stat("logs", "directory") if path.endswith("/.") else stat("logs", "symlink")

    listing = {"entries": [], "more": False}
    files = scripted(answering(file_stat=tell, file_list=listing)).sandbox.files
    files.download("/logs", tmp_path / "down")
    assert (tmp_path / "down").is_dir()


def test_names_that_are_not_text_survive(files: Files, guest: Guest, tmp_path: Path) -> None:
    """Names of any bytes come down as those bytes, and go up again as them."""
    name = os.fsdecode(b"caf\xe9")
    guest.add(f"/d/{name}", b"x")
    files.download("/d", tmp_path / "down")
    assert [os.fsencode(path.name) for path in (tmp_path / "down").iterdir()] == [b"caf\xe9"]
    files.upload(tmp_path / "down", "/again")
    assert guest.files[f"/again/{name}"] == b"x"
