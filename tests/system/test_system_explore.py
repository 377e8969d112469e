"""Several ways tried from one state, of which the best goes on."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from in_guest import ask, over_both, start_counter
from real_daemon import Daemon

from arrakis import ArrakisError, Completed, ExplorationFailedError, Sandbox, SandboxManager

pytestmark = pytest.mark.vm


def size(sandbox: Sandbox) -> float:
    """Score a sandbox by what has been written there."""
    return sandbox.files.stat("/root/found").size


def write(content: str) -> str:
    """Make a command that writes so much."""
    return f"printf {content} > /root/found"


@over_both
def test_the_best_goes_on(manager: SandboxManager, daemon: Daemon) -> None:
    """The winner has the name and the source's state; the others and the source are gone."""
    source = manager.start_sandbox("tree")
    pid = start_counter(source)
    found = source.explore([write("a"), write("abc"), ["touch", "/root/found"]], size)
    assert [branch.score for branch in found.branches] == [1, 3, 0]
    assert found.best is found.branches[1]
    assert [one.name for one in manager.list_all()] == [found.sandbox.name] == ["tree"]
    assert source.files.read("/root/found") == b"abc"
    assert ask(source, f"hostname; kill -0 {pid} && echo counting") == "tree\ncounting"
    assert len(daemon.vmm_pids()) == 1


def test_runners_up(manager: SandboxManager) -> None:
    """With keep the next best stay too; results, scores and errors are those of each branch."""

    def fail(sandbox: Sandbox) -> None:
        raise LookupError(sandbox.name)

    def score(sandbox: Sandbox, result: Completed | str) -> float:
        return float(result if isinstance(result, str) else result.text)

    source = manager.start_sandbox("tree")
    actions = ["echo 1; exit 3", fail, lambda sandbox: sandbox.run("echo 3").text, "echo nan"]
    found = source.explore([*actions, "echo 2"], score, keep=2)
    assert [branch.score for branch in found.branches] == [1, None, 3, None, 2]
    assert [repr(branch.error)[:11] for branch in found.branches if branch.error] == [
        "LookupError",
        "ValueError(",
    ]
    assert [branch.score for branch in found.kept] == [3, 2]
    there = {one.name for one in manager.list_all()}
    assert there == {branch.sandbox.name for branch in found.kept if branch.sandbox}
    assert "tree" in there
    assert found.branches[0].sandbox is None
    assert found.branches[0].result.exit_code == 3


def test_all_fail(manager: SandboxManager) -> None:
    """If no branch has a score that is an error, and the source is alone and as it was."""
    with manager.start_sandbox("tree") as source:
        pid = source.info()["pid"]
        with pytest.raises(ExplorationFailedError, match="none of 2") as failed:
            source.explore([["no-such-program"], "true"], size)
        assert all(branch.error for branch in failed.value.branches)
        for wrong in ([], ["true"] * 65):
            with pytest.raises(ValueError, match="1 to 64"):
                source.explore(wrong, size)
        assert [one.name for one in manager.list_all()] == ["tree"]
        assert source.info()["pid"] == pid


def test_interrupted(manager: SandboxManager) -> None:
    """Ctrl+C ends what runs in the branches, no fork is left, and the source is as it was."""
    with manager.start_sandbox("tree") as source:
        pid = source.info()["pid"]
        begun, main = threading.Event(), threading.get_ident()

        def interrupt() -> None:
            begun.wait()
            signal.pthread_kill(main, signal.SIGINT)

        def hang(sandbox: Sandbox) -> None:
            begun.set()
            sandbox.run("sleep 1000")

        threading.Thread(target=interrupt).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            source.explore([hang, hang, "sleep 1000"], size, workers=2)
        assert time.monotonic() - began < 500
        assert [one.name for one in manager.list_all()] == ["tree"]
        assert source.info()["pid"] == pid


def test_source_that_goes_away(manager: SandboxManager) -> None:
    """A source that is destroyed meanwhile is taken over from; one whose forks are, fails."""
    source = manager.start_sandbox("tree")
    found = source.explore([lambda _: source.destroy()], lambda _: 1)
    assert [one.name for one in manager.list_all()] == [found.sandbox.name] == ["tree"]
    with pytest.raises(ArrakisError):
        source.explore([lambda sandbox: sandbox.destroy()], lambda _: 1)
    assert [one.name for one in manager.list_all()] == ["tree"]
