"""cp, upload and download: where things land."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_harness import Start
from scripted_guest import Guest, stat

from arrakis.cli.main import run


def test_upload_and_download_take_the_flags_of_the_go_client(
    scripted: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """-f SOURCE,TARGET and -p PATH may be repeated or joined by commas."""
    guest = Guest()
    socket = str(scripted(guest.script).path)
    (tmp_path / "a").write_bytes(b"A")
    up = ["--socket", socket, "upload", "-n", "box", "-f", f"{tmp_path}/a,/x/a"]
    assert run([*up, "-f", f"{tmp_path}/a,b"]) == 0
    assert guest.files == {"/x/a": b"A", "b": b"A"}
    out = tmp_path / "out"
    out.mkdir()
    down = ["--socket", socket, "download", "-n", "box", "-o", str(out)]
    assert run([*down, "-p", "/x/a,b", "-p", "/none"]) == 1
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    assert "error: /none: /none: No such file" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "lands"),
    [
        ("file", "box:/new", "/new"),
        ("file", "box:/dir", "/dir/file"),
        ("file", "box:/other/", "/other/file"),
        ("file", "box:rel", "rel"),
        ("tree", "box:/new", "/new/leaf"),
        ("tree", "box:/dir", "/dir/tree/leaf"),
        ("tree/", "box:/dir", "/dir/tree/leaf"),
        ("tree/.", "box:/dir", "/dir/leaf"),
        ("./with:colon", "box:/dir/", "/dir/with:colon"),
    ],
)
def test_cp_up_lands_where_cp_would_put_it(
    scripted: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    target: str,
    lands: str,
) -> None:
    """A target that is a directory, or written as one, receives the source under its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "with:colon").write_bytes(b"x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "leaf").write_bytes(b"x")
    guest = Guest()
    guest.listings["/dir"] = []
    assert run(["--socket", str(scripted(guest.script).path), "cp", source, target]) == 0
    assert [*guest.files] == [lands]


@pytest.mark.parametrize(
    ("source", "target", "lands"),
    [
        ("box:/d/leaf", "new", "new"),
        ("box:/d/leaf", ".", "leaf"),
        ("box:/d/leaf", "here/", "here/leaf"),
        ("box:/d", "new", "new/leaf"),
        ("box:/d", ".", "d/leaf"),
        ("box:/d/", "here", "here/d/leaf"),
        ("box:/d/.", "here", "here/leaf"),
    ],
)
def test_cp_down_lands_where_cp_would_put_it(
    scripted: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    target: str,
    lands: str,
) -> None:
    """The same holds on the way out of a machine."""
    here = tmp_path / "cwd"
    (here / "here").mkdir(parents=True)
    monkeypatch.chdir(here)
    guest = Guest()
    guest.add("/d/leaf", b"x")
    for alias in ("/d/", "/d/."):
        guest.listings[alias] = guest.listings["/d"]
        guest.files[f"{alias.rstrip('/')}/leaf"] = b"x"
    assert run(["--socket", str(scripted(guest.script).path), "cp", source, target]) == 0
    assert [str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()] == [lands]


def test_cp_names_what_it_left_out(
    scripted: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Links that were not copied are told, and the rest is copied."""
    guest = Guest()
    guest.add("/d/leaf", b"x")
    guest.listings["/d"].append(stat("link\x1b", "symlink"))
    socket = str(scripted(guest.script).path)
    assert run(["--socket", socket, "cp", "box:/d", str(tmp_path / "down")]) == 0
    out, err = capfd.readouterr()
    assert out == "copied 1 file, 1 B\n"
    assert "neither a file nor a directory: /d/link\\x1b" in err


def test_local_file_that_is_missing_is_3(
    scripted: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Errors of this host's files look like all others."""
    socket = str(scripted(Guest().script).path)
    assert run(["--socket", socket, "cp", str(tmp_path / "none"), "box:/x"]) == 3
    assert capfd.readouterr().err == f"error: {tmp_path}/none: No such file or directory\n"
