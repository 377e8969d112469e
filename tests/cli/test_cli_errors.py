"""Errors and help: what is told when something is not there, and the codes to exit with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_harness import Cli

from arrakis.cli.main import _SECTIONS, cli, run
from arrakis_rpc import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ArrakisError("x"), 1),
        (errors.UnsupportedError("x"), 1),
        (errors.ImageBuildError("x"), 1),
        (errors.InternalError("x"), 1),
        (errors.InvalidParamsError("x"), 2),
        (errors.NotFoundError("x"), 3),
        (errors.AlreadyExistsError("x"), 4),
        (errors.InvalidStateError("x"), 4),
        (errors.ExhaustedError("x"), 5),
        (errors.ProtocolError("x"), 6),
        (errors.GuestError("x"), 7),
        (errors.VmmError("x"), 7),
        (errors.DeadlineError("x"), 124),
    ],
)
def test_exit_code_tells_the_kind_of_error(
    arrakis: Cli, error: errors.ArrakisError, code: int
) -> None:
    """Each kind of error has its code, and its message goes to stderr."""
    arrakis.serve(vm_stop=error)
    assert arrakis("stop", "box") == (code, "", "error: x\n")


def test_error_shows_hint_and_output_without_control_characters(arrakis: Cli) -> None:
    """Hints and the output of a failed step are shown, and can do nothing to the terminal."""
    arrakis.serve(
        vm_stop=errors.ImageBuildError(
            "step 2\x1b]0;x\x07", hint="mend it", output="line 1\nline 2"
        )
    )
    assert arrakis("stop", "box") == (
        1,
        "",
        "error: step 2\\x1b]0;x\\x07\n  line 1\n  line 2\nhint: mend it\n",
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("start", "a NAME is missing"),
        ("rollback", "a NAME is missing"),
        ("restore box", "a SNAPSHOT is missing"),
        ("restore box before after", "unexpected argument: after"),
        ("start box -n other", "two names: box and other"),
        ("start box -s before --vcpus 2", "a snapshot decides the machine's shape"),
        ("fork box -c 3 --as left", "1 names for 3 siblings"),
        ("frobnicate", "No such command"),
        ("cp a b", "one of SOURCE and TARGET is NAME:PATH"),
        ("cp box:a box:b", "one of SOURCE and TARGET is NAME:PATH"),
        ("upload box -f only-a-source", "SOURCE,TARGET"),
        ("exec box -e nothing -- ls", "KEY=VALUE"),
        ("exec box", "Missing argument"),
        ("shell box", "needs a terminal"),
        ("start box --egress web", "is not one of 'none', 'internet'"),
        ("start box --egress none --allow example.com", "give no --egress with it"),
        ("ports", "a NAME is missing"),
        ("ports box open 80", "'add [HOST:]GUEST' or 'remove HOST'"),
        ("ports box add", "'add [HOST:]GUEST' or 'remove HOST'"),
        ("ports box remove web", "'add [HOST:]GUEST' or 'remove HOST'"),
        ("ports box --publish", "go with 'add'"),
        ("ports box remove 80 --description web", "go with 'add'"),
        ("egress", "a NAME is missing"),
        ("egress box example.com", "--allow TARGET"),
        ("egress box none internet", "--allow TARGET"),
        ("egress box none --allow example.com", "exclude each other"),
        ("exec box -t -- ls", "needs a terminal"),
        ("desktop box click 1", "after NAME comes 'screenshot FILE.png'"),
        ("desktop box click 1 b", "after NAME comes 'screenshot FILE.png'"),
        ("desktop box move 1 2 --count 2", "go with 'click'"),
    ],
)
def test_wrong_usage_is_2_and_points_to_the_help(arrakis: Cli, line: str, message: str) -> None:
    """A line that makes no sense asks the daemon nothing and says what would make sense."""
    code, out, err = arrakis(*line.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "--help' tells more" in err
    assert arrakis.asked == []


def test_missing_daemon_is_6_with_a_hint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a daemon every verb says how to start one."""
    assert run(["--socket", str(tmp_path / "none"), "list"]) == 6
    assert "hint: start the daemon" in capfd.readouterr().err


def test_doctor_works_without_a_daemon(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a daemon the doctor says so, how to start one, and what it can tell by itself."""
    assert run(["--socket", str(tmp_path / "none"), "doctor"]) == 1
    out, err = capfd.readouterr()
    assert re.search(r"^MISSING +daemon +no daemon: there is no socket", out, re.MULTILINE)
    assert re.search(r"^\w+ +kvm ", out, re.MULTILINE)
    assert "daemon: start the daemon: 'sudo arrakisd'" in out
    assert err == "error: this host is not ready\n"


def test_doctor_tells_what_is_required_from_what_would_be_nice(arrakis: Cli) -> None:
    """Only a required check that fails makes the exit code 1; each failure shows its fix."""
    nice = {"name": "kvm", "ok": False, "detail": "no", "required": False, "fix": "modprobe kvm"}
    needed = {"name": "qemu", "ok": False, "detail": "no", "required": True, "fix": "apt qemu"}
    arrakis.serve(system_doctor={"checks": [nice]})
    code, out, _ = arrakis("doctor")
    assert code == 0
    assert "absent   kvm" in out
    assert "kvm: modprobe kvm" in out
    arrakis.serve(system_doctor={"checks": [nice, needed]})
    code, out, _ = arrakis("doctor", "--json")
    assert code == 1
    assert json.loads(out)["healthy"] is False


def test_defect_is_told_without_a_traceback(arrakis: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception nobody expected is one line, unless the traceback is asked for."""
    monkeypatch.setattr("arrakis.manager.SandboxManager.health", lambda _: 1 // 0)
    code, _, err = arrakis("health")
    assert code == 1
    assert err.startswith("error: a defect of arrakis: ZeroDivisionError")
    monkeypatch.setenv("ARRAKIS_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        arrakis("health")


def _leaves(group: Any) -> list[Any]:
    found = []
    for verb in group.commands.values():
        found += _leaves(verb) if hasattr(verb, "commands") else [verb]
    return found


@pytest.mark.parametrize("verb", _leaves(cli), ids=lambda verb: verb.callback.__name__)
def test_help_of_each_verb_has_an_example(verb: Any) -> None:
    """Every verb's help shows how it is used."""
    assert "Example:\n  arrakis " in (verb.epilog or "")


def test_help_lists_every_verb_and_the_exit_codes(capfd: pytest.CaptureFixture[str]) -> None:
    """The overview has all verbs under their headings, and what the exit codes mean."""
    assert run(["--help"]) == 0
    out = capfd.readouterr().out
    for title, verbs in _SECTIONS.items():
        assert f"{title}:\n" in out
        for verb in verbs:
            assert re.search(rf"^  {verb.name} +\S", out, re.MULTILINE), verb.name
    assert "6 the daemon cannot be reached" in re.sub(r" +", " ", out)
