"""Running commands."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from agent_client import AgentProcess, Host
from agent_waiting import cpu_share, is_gone, wait_for, wait_until_gone
from real_daemon import shortest

from arrakis_rpc.connection import WINDOW
from arrakis_rpc.converter import unstructure
from arrakis_rpc.errors import (
    ArrakisError,
    CancelledError,
    GuestError,
    InvalidParamsError,
    NotFoundError,
)
from arrakis_rpc.guest_api import ExecSpec, Pty

MIB = 1024 * 1024


def started(host: Host, spec: ExecSpec) -> tuple[int, int]:
    """Start a command whose first line is a process id; give the call and that id."""
    call_id = host.start_exec(spec)
    host.wait(lambda: b"\n" in host.received[call_id, "stdout"])
    return call_id, int(host.received[call_id, "stdout"].split()[0])


def test_argv(host: Host) -> None:
    """A command gets its arguments as they are, and its outputs arrive apart."""
    result, output, errors = host.run(["printf", "%s|", "a b", "$HOME", ""])
    assert (output, errors) == (b"a b|$HOME||", b"")
    assert (result.exit_code, result.signal, result.timed_out) == (0, None, False)
    assert result.duration > 0


def test_shell(host: Host) -> None:
    """A shell command is bash's, with its exit code and its errors."""
    result, output, errors = host.run("[[ a == a ]] && echo yes; echo no >&2; exit 7")
    assert (output, errors, result.exit_code) == (b"yes\n", b"no\n", 7)


def test_death_by_signal(host: Host) -> None:
    """A command that was killed has a signal and no exit code."""
    result, _, _ = host.run("kill -TERM $$")
    assert (result.exit_code, result.signal) == (None, signal.SIGTERM)


def test_work_dir_is_made(host: Host) -> None:
    """Without cwd a command runs in the work directory, even if somebody has removed it."""
    for _ in range(2):
        assert host.run(["pwd"])[1].decode().strip() == str(host.agent.work_dir)
        assert host.agent.work_dir.stat().st_mode & 0o7777 == 0o1777
        host.agent.work_dir.rmdir()


def test_cwd(host: Host) -> None:
    """A relative cwd starts from the work directory, an absolute one is taken as it is."""
    (host.agent.work_dir / "sub").mkdir(parents=True)
    assert host.run(["pwd"], cwd="sub")[1].decode().strip() == str(host.agent.work_dir / "sub")
    assert host.run(["pwd"], cwd="/usr")[1] == b"/usr\n"


def test_environment(host: Host) -> None:
    """A command gets a plain environment of root, and what the caller adds or replaces."""
    _, output, _ = host.run(["/usr/bin/env"], env={"A": "1", "LANG": "C", "Ü": "ä\udcff"})
    assert sorted(output.splitlines()) == sorted(
        [
            b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            b"HOME=/root",
            b"USER=root",
            b"LOGNAME=root",
            b"SHELL=/bin/bash",
            b"LANG=C",
            b"A=1",
            "Ü=ä".encode() + b"\xff",
        ]
    )


def test_environment_of_the_image(tmp_path: Path) -> None:
    """What the image sets is in every command's environment; what the caller sets goes first."""
    image = {"A": "image", "B": "image", "PATH": "/nowhere:/usr/bin", "Ü": "ä", "TERM": "odd"}
    (tmp_path / "environment.json").write_text(json.dumps(image))
    with AgentProcess(tmp_path) as agent:
        agent.host.open()
        for user in (None, "daemon"):
            _, output, _ = agent.host.run(["env"], env={"B": "caller"}, user=user)
            lines = output.decode().splitlines()
            assert {"A=image", "B=caller", "PATH=/nowhere:/usr/bin", "Ü=ä"} <= set(lines)
            assert f"USER={user or 'root'}" in lines
        _, output, _ = agent.host.run("echo $TERM", pty=Pty(term="vt100"))
        assert output.decode().strip() == "vt100"


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "7", "\udcff"])
def test_environment_that_is_none(tmp_path: Path, content: str) -> None:
    """An agent whose image says nonsense about the environment works without."""
    (tmp_path / "environment.json").write_bytes(os.fsencode(content))
    with AgentProcess(tmp_path) as agent:
        agent.host.open()
        assert agent.host.run(["printenv", "USER"])[1] == b"root\n"


def test_user(host: Host) -> None:
    """A user's command has his ids, groups and environment, and no way back to root."""
    _, output, errors = host.run(
        "id -u; id -g; id -G; echo $HOME $USER; grep -h ^Cap.*[PE] /proc/self/status;"
        " echo again > /dev/stdout; echo oops > /dev/stderr; touch here && ls -l here",
        user="daemon",
    )
    lines = output.decode().splitlines()
    assert lines[:4] == ["1", "1", "1", "/usr/sbin daemon"]
    assert [line.split()[1] for line in lines[4:6]] == ["0" * 16] * 2
    assert lines[6] == "again"
    assert lines[7].split()[2:4] == ["daemon", "daemon"]
    assert errors == b"oops\n"


def test_user_with_terminal(host: Host) -> None:
    """A user can open the terminal that he was given."""
    result, output, _ = host.run("tty > $(tty)", user="daemon", pty=Pty())
    assert output.startswith(b"/dev/pts/")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (ExecSpec(argv=["nosuch"]), NotFoundError, r"program 'nosuch' not found in PATH \(/usr"),
        (ExecSpec(argv=[""]), NotFoundError, "program '' not found"),
        (ExecSpec(argv=["ls"], env={"PATH": "/x"}), NotFoundError, r"not found in PATH \(/x\)"),
        (ExecSpec(argv=["/x/y"]), NotFoundError, "program '/x/y' does not exist"),
        (ExecSpec(argv=["true"], cwd="/x"), NotFoundError, "directory '/x' does not exist"),
        (ExecSpec(argv=["true"], cwd="/etc/passwd"), NotFoundError, "is not a directory"),
        (ExecSpec(argv=["true"], user="fred"), NotFoundError, "user 'fred' does not exist"),
        (ExecSpec(argv=["/etc/passwd"]), GuestError, "'/etc/passwd': Permission denied"),
        (ExecSpec(argv=["/etc"]), GuestError, "'/etc': Permission denied"),
        (ExecSpec(argv=["true", "x" * 200_000]), GuestError, "Argument list too long"),
        (ExecSpec(argv=["true"], env={"A=B": "c"}), GuestError, "illegal environment"),
        (ExecSpec(argv=["./script"]), NotFoundError, "interpreter does not exist"),
        (ExecSpec(argv=["x" * 900_000]), NotFoundError, "program 'xxx"),
    ],
)
def test_what_cannot_be_run(
    host: Host, spec: ExecSpec, error: type[ArrakisError], message: str
) -> None:
    """What cannot be run fails with an error that says why, and leaves nothing open."""
    host.agent.work_dir.mkdir()
    script = host.agent.work_dir / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    before = host.agent.descriptors()
    with pytest.raises(error, match=message):
        host.exec_result(host.start_exec(spec))
    assert host.agent.descriptors() == before
    assert host.run(["true"])[0].exit_code == 0


def test_program_in_the_childs_path(host: Host) -> None:
    """A program is looked for in the PATH of the command, relative to its directory."""
    program = host.agent.work_dir / "bin" / "hello"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho $0\n")
    program.chmod(0o755)
    (host.agent.work_dir / "other" / "hello").mkdir(parents=True)
    for spec in (
        {"argv": ["hello"], "env": {"PATH": "other:bin:/bin"}},
        {"argv": ["./bin/hello"]},
        {"argv": ["./hello"], "cwd": "bin"},
    ):
        result, output, _ = host.run(**spec)
        assert result.exit_code == 0
        assert output.strip().endswith(b"/hello")


def test_timeout(host: Host) -> None:
    """A command that takes too long is killed with its children; that is a result."""
    call_id = host.start_exec(ExecSpec(shell="sleep 60 & echo $!; sleep 60", timeout=0.3))
    result = host.exec_result(call_id)
    assert (result.timed_out, result.signal, result.exit_code) == (True, signal.SIGKILL, None)
    assert 0.3 <= result.duration < 30
    for child in host.received[call_id, "stdout"].split():  # none, if even bash came too late
        wait_until_gone(int(child))


def test_signal(host: Host) -> None:
    """A signal goes to the command and to what it started in its process group."""
    script = "trap 'echo caught; exit 3' USR1; sh -c 'echo $$; exec sleep 60' & wait"
    call_id, child = started(host, ExecSpec(shell=script))
    host.note(call_id, "exec.signal", signal=signal.SIGUSR1)
    assert host.exec_result(call_id).exit_code == 3
    assert host.received[call_id, "stdout"].endswith(b"caught\n")
    wait_until_gone(child)


def test_notes_right_behind_the_call(host: Host) -> None:
    """What comes in one piece with the call is heeded as what comes later is."""
    script = "until [ '33 44' = \"$(stty size)\" ]; do sleep 0.05; done"
    spec = ExecSpec(shell=script, pty=Pty(rows=5, cols=5))
    call_id, call = host.connection.start_call("exec.run", unstructure(spec))
    host.send(call + host.connection.notify(call_id, "exec.resize", {"rows": 33, "cols": 44}))
    assert host.exec_result(call_id).exit_code == 0
    killed = unstructure(ExecSpec(argv=["sleep", "60"]))
    call_id, call = host.connection.start_call("exec.run", killed)
    host.send(call + host.connection.notify(call_id, "exec.signal", {"signal": signal.SIGTERM}))
    assert host.exec_result(call_id).signal == signal.SIGTERM


def test_senseless_notes(host: Host) -> None:
    """Notifications that make no sense are ignored."""
    call_id, _ = started(host, ExecSpec(shell="echo $$; read", stdin=True))
    for number in (0, -1, 65, 2**60, "KILL", None):
        host.note(call_id, "exec.signal", signal=number)
    host.note(call_id, "exec.signal")
    host.note(call_id, "exec.resize", rows=5, cols=5)
    host.note(call_id, "exec.resize", rows="5")
    host.note(call_id, "exec.dance", signal=9)
    host.upload(call_id, "stdin", b"\n")
    assert host.exec_result(call_id).exit_code == 0


def test_no_stdin(host: Host) -> None:
    """A command that was given no input reads its end at once."""
    assert host.run(["cat"])[0].exit_code == 0


def test_stdin(host: Host) -> None:
    """Several windows of input go through a command and come back unchanged."""
    data = os.urandom(3 * WINDOW + 12345)
    call_id = host.start_exec(ExecSpec(argv=["sha256sum"], stdin=True))
    host.upload(call_id, "stdin", data)
    assert host.exec_result(call_id).exit_code == 0
    expected = hashlib.sha256(data).hexdigest()
    assert host.received[call_id, "stdout"].split()[0].decode() == expected


def test_stdin_goes_on_while_output_does(host: Host) -> None:
    """Input and output of one command do not wait for each other."""
    data = os.urandom(4 * MIB)
    call_id = host.start_exec(ExecSpec(argv=["cat"], stdin=True))
    host.upload(call_id, "stdin", data)
    assert host.exec_result(call_id).exit_code == 0
    assert host.received[call_id, "stdout"] == data


def test_stdin_not_read(host: Host) -> None:
    """A command that does not read its input ends all the same, however much is sent."""
    call_id = host.start_exec(ExecSpec(shell="exec <&-; echo closed; sleep 0.5", stdin=True))
    host.wait(lambda: host.received[call_id, "stdout"])
    host.upload(call_id, "stdin", bytes(3 * WINDOW))
    assert host.exec_result(call_id).exit_code == 0


def test_merged_output(host: Host) -> None:
    """Merged output is one channel, in the order in which it was written."""
    _, output, errors = host.run(
        "for i in 1 2 3; do echo o$i; echo e$i >&2; done", merge_output=True
    )
    assert (output, errors) == (b"o1\ne1\no2\ne2\no3\ne3\n", b"")


def test_invalid_utf8(host: Host) -> None:
    """Output is bytes, whatever they mean."""
    assert host.run(r"printf '\xff\xfe\x00\x80'; printf '\xc3' >&2")[1:] == (
        b"\xff\xfe\x00\x80",
        b"\xc3",
    )


def test_terminal(host: Host) -> None:
    """A terminal has the size and type asked for, and is the controlling one."""
    result, output, _ = host.run(
        "tty; stty size; echo $TERM; echo direct > /dev/tty; exit 4",
        pty=Pty(rows=33, cols=99, term="vt100"),
    )
    lines = output.decode().split("\r\n")
    assert lines[0].startswith("/dev/pts/")
    assert lines[1:] == ["33 99", "vt100", "direct", ""]
    assert result.exit_code == 4


def test_terminal_input_and_resize(host: Host) -> None:
    """What runs in a terminal reads what is typed, and is told of a new size."""
    call_id = host.start_exec(
        ExecSpec(
            shell="trap 'stty size; exit' WINCH; read -r line; echo \"<$line>\";"
            " while :; do sleep 0.05; done",
            pty=Pty(),
            stdin=True,
        )
    )
    output = host.received[call_id, "stdout"]
    host.send(host.connection.send_data(call_id, "stdin", b"typed\n"))
    host.wait(lambda: b"<typed>" in output)
    host.note(call_id, "exec.resize", rows=10, cols=20)
    assert host.exec_result(call_id).exit_code == 0
    assert b"10 20" in output


def test_end_of_terminal_input(host: Host) -> None:
    """The end of the input is an end of file for what reads from the terminal."""
    call_id = host.start_exec(ExecSpec(argv=["cat"], pty=Pty(), stdin=True))
    host.upload(call_id, "stdin", b"line\n")
    assert host.exec_result(call_id).exit_code == 0
    assert host.received[call_id, "stdout"] == b"line\r\nline\r\n"


def test_interrupt_key(host: Host) -> None:
    """The interrupt key of a terminal interrupts what runs in it."""
    call_id = host.start_exec(ExecSpec(shell="echo go; sleep 60", pty=Pty(), stdin=True))
    host.wait(lambda: b"go" in host.received[call_id, "stdout"])
    host.send(host.connection.send_data(call_id, "stdin", b"\x03"))
    result = host.exec_result(call_id)
    assert result.signal == signal.SIGINT or result.exit_code == 130


def test_background(host: Host) -> None:
    """A command in the background is answered at once, and outlives its session."""
    result, output, _ = host.run("echo unseen; sleep 60", background=True)
    assert (result.exit_code, result.signal, output) == (None, None, b"")
    host.open()
    assert not is_gone(result.pid)
    os.killpg(result.pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{result.pid}").exists())


def test_background_timeout(host: Host) -> None:
    """A time limit holds in the background too."""
    began = time.monotonic()
    result, _, _ = host.run("sleep 60", background=True, timeout=0.2)
    wait_until_gone(result.pid)
    assert time.monotonic() - began >= 0.2


def test_background_without_streams(host: Host) -> None:
    """A command in the background cannot have what only a call can give it."""
    for options in ({"stdin": True}, {"pty": Pty()}):
        with pytest.raises(InvalidParamsError, match="background"):
            host.run(["true"], background=True, **options)


def test_output_of_a_slow_reader(host: Host) -> None:
    """Hundreds of megabytes arrive byte by byte exact, and the agent never holds much of it."""
    size = 200 * MIB
    call_id = host.start_exec(ExecSpec(shell=f"yes arrakis | head -c {size}"))
    host.stalled.add(call_id)
    host.wait(lambda: len(host.received[call_id, "stdout"]) == WINDOW)
    time.sleep(0.3)
    before = host.agent.memory()
    received = 0
    while call_id not in host.answers:
        chunk = host.received.pop((call_id, "stdout"), b"")
        assert bytes(chunk) == (b"arrakis\n" * (len(chunk) // 8 + 2))[received % 8 :][: len(chunk)]
        received += len(chunk)
        host.consume(call_id, "stdout", len(chunk))
        if received % (64 * MIB) < len(chunk):
            time.sleep(0.05)
        host.take()
    received += len(host.received[call_id, "stdout"])
    assert received == size
    assert host.exec_result(call_id).exit_code == 0
    assert host.agent.memory() - before < 8 * MIB


def test_stalled_command_disturbs_nobody(host: Host) -> None:
    """A command whose output nobody takes waits; others run as if it were not there."""
    stalled = host.start_exec(ExecSpec(argv=["yes"]))
    host.stalled.add(stalled)
    host.wait(lambda: len(host.received[stalled, "stdout"]) == WINDOW)
    memory = host.agent.memory()
    for _ in range(20):
        assert host.run(["echo", "x"])[1] == b"x\n"
    assert len(host.run(f"head -c {8 * MIB} /dev/zero")[1]) == 8 * MIB
    assert len(host.received[stalled, "stdout"]) == WINDOW
    assert host.agent.memory() - memory < 8 * MIB
    host.cancel(stalled)
    with pytest.raises(CancelledError):
        host.wait_answer(stalled)


def test_all_output_before_the_end(host: Host) -> None:
    """All that a command wrote before it ended arrives, on both channels."""
    for size in (1, 4095, 65536):
        _, output, errors = host.run(
            ["python3", "-c", f"import os; os.write(1, b'o'*{size}); os.write(2, b'e'*{size})"]
        )
        assert (len(output), len(errors)) == (size, size)


def test_all_output_of_a_stalled_command(host: Host) -> None:
    """What a command wrote before it ended arrives even if the reader comes much later."""
    size = WINDOW + 60_000
    call_id = host.start_exec(ExecSpec(shell=f"head -c {size} /dev/zero"))
    host.stalled.add(call_id)
    host.wait(lambda: len(host.received[call_id, "stdout"]) == WINDOW)
    time.sleep(0.2)
    assert call_id not in host.answers
    host.consume(call_id, "stdout", WINDOW)
    assert host.exec_result(call_id).exit_code == 0
    assert len(host.received[call_id, "stdout"]) == size


def test_terminal_output_before_the_end(host: Host) -> None:
    """All that was written to a terminal arrives."""
    for _ in range(20):
        _, output, _ = host.run("seq 2000", pty=Pty())
        assert output == b"".join(b"%d\r\n" % number for number in range(1, 2001))


@pytest.mark.parametrize("pty", [None, Pty()])
def test_orphan_holding_the_output(host: Host, pty: Pty | None) -> None:
    """A child left behind does not hold up the answer, and is not killed by writing later."""
    answered, marker = (host.agent.work_dir / name for name in ("answered", "survived"))
    result, output, _ = host.run(
        f"trap '' HUP; (until [ -e {answered} ]; do sleep 0.05; done;"
        " for i in {1..300}; do printf %01024d 0 || exit; done;"
        f" echo > {marker}; sleep 60) & echo $!",
        pty=pty,
    )
    answered.touch()
    assert result.exit_code == 0
    wait_for(marker.exists)
    pid = int(output)
    assert not is_gone(pid)
    os.killpg(result.pid, signal.SIGKILL)
    wait_until_gone(pid)


def test_orphan_that_never_stops_writing(host: Host) -> None:
    """A child that writes for ever neither holds up the answer nor keeps the agent busy."""
    result, _, _ = host.run("yes & disown; sleep 0.1")
    assert result.exit_code == 0
    assert shortest(lambda: cpu_share(host.agent.pid), 0.2) < 0.2
    os.killpg(result.pid, signal.SIGKILL)


def test_idle_agent_does_not_spin(host: Host) -> None:
    """An agent that waits, for a command and for input, uses no processor time."""
    call_id, _ = started(host, ExecSpec(shell="echo $$; exec >&-; sleep 60", stdin=True))
    assert shortest(lambda: cpu_share(host.agent.pid), 0.06) < 0.06
    host.cancel(call_id)


def test_cancel_kills_grandchildren(host: Host) -> None:
    """Cancelling kills the whole session, also who has left its process group."""
    script = "set -m; sh -c 'sleep 60 & echo $!; wait' & wait"
    call_id, grandchild = started(host, ExecSpec(shell=script))
    assert os.getpgid(grandchild) != os.getsid(grandchild)
    leader = os.getsid(grandchild)
    host.cancel(call_id)
    with pytest.raises(CancelledError):
        host.wait_answer(call_id)
    wait_until_gone(grandchild)
    wait_until_gone(leader)


def test_cancel_at_once(host: Host) -> None:
    """A call that is cancelled in the same breath is answered, and nothing is left of it."""
    before = host.agent.descriptors()
    for _ in range(20):
        call_id, frame = host.connection.start_call("exec.run", {"argv": ["sleep", "60"]})
        host.send(frame + host.connection.cancel_call(call_id))
        with pytest.raises(CancelledError):
            host.wait_answer(call_id)
    wait_for(lambda: not host.agent.children())
    assert host.agent.descriptors() == before


def test_cancel_with_input_pending(host: Host) -> None:
    """A call cancelled while its input waits to be read leaves nothing behind."""
    before = host.agent.descriptors()
    call_id = host.start_exec(ExecSpec(argv=["sleep", "60"], stdin=True))
    host.upload(call_id, "stdin", bytes(WINDOW))
    host.cancel(call_id)
    with pytest.raises(CancelledError):
        host.wait_answer(call_id)
    wait_for(lambda: not host.agent.children())
    assert host.agent.descriptors() == before


def test_nothing_leaks(host: Host) -> None:
    """Hundreds of commands of all kinds leave no descriptor and no zombie."""
    kinds: list[dict[str, object]] = [
        {},
        {"merge_output": True},
        {"stdin": True},
        {"pty": Pty(), "stdin": True},
        {"background": True},
    ]
    host.run(["true"])
    before = host.agent.descriptors()
    for number in range(200):
        host.run(["echo", "x"], **kinds[number % len(kinds)])
    wait_for(lambda: not host.agent.children())
    assert host.agent.descriptors() == before


def test_children_inherit_nothing(host: Host) -> None:
    """A command has its three descriptors and none of the agent's."""
    _, output, _ = host.run(["ls", "/proc/self/fd"])
    assert output.split() == [b"0", b"1", b"2", b"3"]  # the last is the directory


def test_signals_are_as_usual(host: Host) -> None:
    """A command ignores and blocks no signal because the agent does."""
    _, output, _ = host.run(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"])
    blocked, ignored = (int(line.split()[1], 16) for line in output.splitlines())
    of_the_c_library = 1 << 31 | 1 << 32  # its posix_spawn has its own two ignored
    assert (blocked, ignored & ~of_the_c_library) == (0, 0)


def test_oom_score(agent: AgentProcess) -> None:
    """The agent's protection from the lack of memory is not passed on."""
    agent.end()
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("300")
    try:
        agent.start()
    finally:
        own.write_text(before)
    agent.host.open()
    _, output, _ = agent.host.run("cat /proc/self/oom_score_adj; cat /proc/$$/oom_score_adj")
    assert output == b"0\n0\n"
    assert Path(f"/proc/{agent.pid}/oom_score_adj").read_text() == "300\n"
