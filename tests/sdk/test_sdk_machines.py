"""The SDK against real machines."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from real_daemon import wait_until

from arrakis import (
    AlreadyExistsError,
    DeadlineError,
    FileOperationError,
    InvalidParamsError,
    InvalidStateError,
    NotFoundError,
    Pty,
    Sandbox,
    SandboxManager,
)

pytestmark = pytest.mark.vm


@pytest.fixture
def box(manager: SandboxManager) -> Iterator[Sandbox]:
    with manager.start_sandbox("box") as sandbox:
        yield sandbox


def test_program_written_for_py_arrakis_runs(manager: SandboxManager) -> None:
    """Start, run, upload, download, snapshot, destroy and restore work as they did."""
    sandbox = manager.start_sandbox("agent")
    assert sandbox.info()["status"] == "RUNNING"
    assert sandbox.run_cmd("echo out; echo err >&2") == {"output": "out\nerr\n", "error": ""}
    assert sandbox.run_cmd("exit 3") == {"output": "", "error": "exit status 3"}
    assert sandbox.run_cmd("kill -9 $$")["error"] == "signal: killed"
    sandbox.upload_files([{"path": "hello.txt", "content": "Grüße\n"}])
    assert sandbox.run_cmd("pwd; cat hello.txt")["output"] == "/tmp/server_files\nGrüße\n"
    content, missing = sandbox.download_files(["hello.txt", "/none"])
    assert content == {"path": "hello.txt", "content": "Grüße\n"}
    assert "No such file" in missing["error"]
    checkpoint = sandbox.snapshot()
    sandbox.run_cmd("rm hello.txt")
    sandbox.destroy()
    assert manager.list_all() == []
    restored = manager.restore("agent", checkpoint)
    assert [one.name for one in manager.list_all()] == ["agent"]
    assert restored.run_cmd("cat hello.txt")["output"] == "Grüße\n"
    restored.destroy()
    manager.snapshots.delete(checkpoint)


def test_background_command_goes_on(box: Sandbox) -> None:
    """A command in the background returns at once and is still there afterwards."""
    told = box.run_cmd("sleep 77", blocking=False)
    assert told["output"] == "Command 'sleep 77' started in background"
    wait_until(lambda: box.run(["pgrep", "-x", "sleep"]).ok, 20)


def test_states_follow_their_words(box: Sandbox) -> None:
    """Paused machines answer nothing, resumed ones go on, stopped ones stay listed."""
    box.pause()
    assert box.info()["status"] == "PAUSED"
    with pytest.raises(InvalidStateError):
        box.run(["true"])
    box.update_state("running")
    assert box.run(["true"]).ok
    box.update_state("stopped")
    assert box.info()["status"] == "STOPPED"


def test_fork_gives_siblings_with_all_that_was_there(box: Sandbox) -> None:
    """Siblings have the files of their source, and then lives of their own."""
    box.files.write("/root/shared", "before")
    left, right = box.fork(2, names=["left", "right"])
    left.files.write("/root/shared", "left")
    assert [one.files.read_text("/root/shared") for one in (box, left, right)] == [
        "before",
        "left",
        "before",
    ]


def test_errors_of_the_daemon_arrive_as_what_they_are(
    box: Sandbox, manager: SandboxManager
) -> None:
    """Names that are taken, missing or malformed are told apart."""
    with pytest.raises(AlreadyExistsError):
        manager.start_sandbox("box")
    with pytest.raises(NotFoundError):
        manager.get("none")
    with pytest.raises(NotFoundError):
        manager.restore("other", "none")
    with pytest.raises(InvalidParamsError, match="lower-case"):
        box.snapshot("Not_An_Id")
    with pytest.raises(NotFoundError, match="frob"):
        box.run(["frob"])
    with pytest.raises(NotFoundError):
        box.run(["true"], user="nobody-of-that-name")


def test_streams_environment_directory_user_and_time(box: Sandbox) -> None:
    """A command runs as it was asked to, with its streams apart."""
    script = 'echo "$A $PWD $(id -un)"; echo err >&2; exit 4'
    done = box.run(script, env={"A": "1"}, cwd="/usr", user="elara")
    assert (done.stdout, done.stderr, done.exit_code) == (b"1 /usr elara\n", b"err\n", 4)
    timed = box.run(["sleep", "60"], timeout=0.5)
    assert timed.timed_out
    assert 0.4 < timed.duration < 30
    assert not box.run(["pgrep", "-x", "sleep"]).ok


def test_output_comes_while_the_command_runs(box: Sandbox) -> None:
    """A conversation with a command that answers line by line does not wait for its end."""
    with box.exec(["cat", "-u"], stdin=True) as process:
        lines = process.stdout_lines()
        for text in ("one", "two"):
            process.stdin.write(f"{text}\n")
            assert next(lines) == text
        process.stdin.close()
        assert process.wait().ok


def test_signals_reach_the_command(box: Sandbox) -> None:
    """A command can catch a signal, and not catch SIGKILL."""
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    with box.exec(script) as process:
        lines = process.stdout_lines()
        assert next(lines) == "ready"
        process.signal(signal.SIGINT)
        assert next(lines) == "caught"
        assert process.wait().exit_code == 5
    with box.exec(["sleep", "60"]) as process:
        with pytest.raises(DeadlineError):
            process.wait(0.3)
        process.kill()
        assert process.wait().signal == signal.SIGKILL


def test_leaving_the_block_ends_the_whole_session(box: Sandbox) -> None:
    """Nothing that a command started in its session is left after its block."""
    with box.exec("sleep 88 & sleep 88") as process, pytest.raises(DeadlineError):
        process.wait(0.5)
    # Killed it is by now, but pgrep finds it until the guest's init has reaped it.
    wait_until(lambda: not box.run(["pgrep", "-x", "sleep"]).ok, 5)


def test_dropped_process_ends_in_the_guest(box: Sandbox) -> None:
    """Closing the connection is enough to end the command, sooner or later."""
    process = box.exec(["sleep", "99"])
    with pytest.raises(DeadlineError):
        process.wait(0.5)
    del process
    wait_until(lambda: not box.run(["pgrep", "-x", "sleep"]).ok, 10)


def test_terminal_has_its_size(box: Sandbox) -> None:
    """A command with a terminal knows its size, and learns of changes."""
    script = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.1; done"
    with box.exec(script, pty=Pty(30, 90)) as process:
        lines = process.stdout_lines()
        assert next(lines).strip() == "30 90"
        process.resize(40, 100)
        assert next(lines).strip() == "40 100"


def test_much_data_goes_through_a_command(box: Sandbox) -> None:
    """Megabytes in and out of one command, at once, arrive as they were."""
    data = os.urandom(8 * 2**20)
    assert box.run(["cat"], input=data).stdout == data


def test_commands_of_many_threads_do_not_mix(box: Sandbox) -> None:
    """Each thread gets the output of its own commands."""
    wrong: list[str] = []

    def ask(number: int) -> None:
        for turn in range(5):
            text = f"{number} {turn}\n"
            if box.run(["cat"], input=text).text != text:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_files_live_as_they_do_anywhere(box: Sandbox) -> None:
    """Files are written, listed, described, read in part, appended to and removed."""
    files = box.files
    written = files.write("dir/file", b"0123456789", mode=0o640, mtime=5.0)
    assert (written.size, written.mode & 0o7777, written.mtime) == (10, 0o640, 5.0)
    assert files.read("dir/file", 2, 3) == b"234"
    files.write("dir/file", b"!", append=True)
    assert files.read_text("/tmp/server_files/dir/file") == "0123456789!"
    files.mkdir("dir/a/b", parents=True)
    box.run(["ln", "-s", "/none", "dir/dangling"], check=True)
    assert [(one.name, one.kind) for one in files.list("dir")] == [
        ("a", "directory"),
        ("dangling", "symlink"),
        ("file", "file"),
    ]
    assert files.exists("dir/dangling")
    assert not files.exists("dir/file/below")
    with pytest.raises(FileOperationError):
        files.remove("dir")
    files.remove("dir", recursive=True)
    assert not files.exists("dir")
    with pytest.raises(FileOperationError):
        files.read("/proc")


def test_trees_survive_the_round_trip(box: Sandbox, tmp_path: Path) -> None:
    """A directory goes up and comes down with its contents, modes and times."""
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "run.sh").chmod(0o755)
    (source / "sub" / "caf\udce9").write_bytes(os.urandom(300_000))
    os.utime(source / "run.sh", (5, 5))
    up = box.files.upload(source, "/root/copy")
    assert box.run(["/root/copy/run.sh"]).text == "ran\n"
    box.run(["ln", "-s", "/etc/passwd", "/root/copy/link"], check=True)
    down = box.files.download("/root/copy", tmp_path / "copy")
    assert (up.files, down.files, up.bytes) == (2, 2, down.bytes)
    assert down.skipped == ["/root/copy/link"]
    for path in source.rglob("*"):
        copy = tmp_path / "copy" / path.relative_to(source)
        assert copy.stat().st_mode == path.stat().st_mode
        if path.is_file():
            assert copy.read_bytes() == path.read_bytes()
            assert copy.stat().st_mtime == pytest.approx(path.stat().st_mtime)


def test_interrupted_start_leaves_no_machine(manager: SandboxManager) -> None:
    """Ctrl+C while a machine starts ends it, and its name is free again."""
    manager.start_sandbox("box").destroy()  # now its template is there

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 -- also if it comes at once
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            manager.start_sandbox("box")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wait_until(lambda: not manager.list_all(), 20)
    assert manager.start_sandbox("box").run(["true"]).ok


def test_events_tell_what_happens(manager: SandboxManager) -> None:
    """Whoever listens hears of a machine's coming and going."""
    events = manager.events()
    heard: list[str] = []

    def listen() -> None:
        for event in events:
            if event.vm == "heard":
                heard.append(event.kind)
            if event.vm == "last":
                return

    listener = threading.Thread(target=listen)
    listener.start()
    manager.start_sandbox("heard").destroy()
    manager.start_sandbox("last").destroy()
    listener.join(60)
    assert not listener.is_alive()
    assert heard[0] == "vm.started"
    assert len(heard) > 1


def test_daemon_describes_itself(manager: SandboxManager) -> None:
    """Health, information and checks are there without any machine."""
    assert manager.health().status == "healthy"
    assert manager.info().default_memory_mib >= 128
    assert all(check.detail for check in manager.doctor().checks)
    assert manager.images.list()
