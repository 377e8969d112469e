"""What a killed daemon leaves on its host, and what the next one makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_daemon import (
    is_running,
    namespace_of,
    passable_directory,
    running_daemon,
    started_daemon,
    write_config,
)

from arrakisd.host.processes import end_orphan, find_orphans


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for daemons that run no VM."""
    with passable_directory() as directory:
        yield directory


@contextlib.contextmanager
def left_running(owner: str, user: str = "root") -> Iterator[subprocess.Popen[bytes]]:
    """A process that carries the name of an owner, as all that a daemon starts."""
    with subprocess.Popen(
        ["sleep", "1000"], env={"ARRAKIS_CHILD_OF": owner}, user=pwd.getpwnam(user).pw_uid
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_orphans(place: Path) -> None:
    """A dead owner's processes are ended, whoever they run as, and nobody else's."""
    with (
        left_running(f"arrakisd {place}") as first,
        left_running(f"arrakisd {place}", "arrakis-vmm") as second,
        left_running(f"arrakisd {place}/other") as other,
    ):
        owner = f"arrakisd {place}"
        ended = [pid for pid in find_orphans(owner) if end_orphan(pid, owner)]
        assert sorted(ended) == sorted([first.pid, second.pid])
        assert not is_running(first.pid)
        assert not is_running(second.pid)
        assert is_running(other.pid)
        assert os.geteuid() == 0


def test_next_daemon(place: Path) -> None:
    """The next daemon ends what is left running, and removes an image that was half made."""
    state = place / "state"
    with started_daemon(state) as daemon:
        daemon.process.kill()
        daemon.process.wait()
        half_made = state / "images" / ".new-half"
        half_made.mkdir(parents=True)
        with left_running(f"arrakisd {state}") as orphan, running_daemon(state) as again:
            assert not is_running(orphan.pid)
            assert "ended what a killed daemon has left running" in again.log_text()
            assert not half_made.exists()


def test_other_network(place: Path) -> None:
    """A daemon without a bridge removes the namespace, bridge and rules of a killed one with it."""
    state = place / "state"
    with started_daemon(state) as daemon:
        namespace = Path("/run/netns", namespace_of(state))
        assert namespace.exists()
        daemon.process.kill()
        daemon.process.wait()
        config = write_config(state, network='mode = "none"')
        with running_daemon(state, f"--config={config}"):
            assert not namespace.exists()
            left = {one.name for one in (state / "network").iterdir()}
            assert left <= {"addresses", "ports"}


def doctor_fix(state: Path, *flags: str, says: str = "") -> subprocess.CompletedProcess[str]:
    """Run `arrakis doctor --fix` on a state directory."""
    config = state.parent / f"{state.name}.toml"
    program = Path(sys.executable).with_name("arrakis")
    argv = [program, "doctor", "--fix", f"--config={config}", f"--state={state}", *flags]
    environment = {**os.environ, "ARRAKIS_SOCKET": str(state / "arrakisd.sock")}
    return subprocess.run(
        argv, input=says, env=environment, capture_output=True, text=True, check=False
    )


def test_doctor_fix(place: Path) -> None:
    """By hand, too: it refuses while a daemon runs, then shows, asks, and removes what is ours."""
    state = place / "state"
    with started_daemon(state) as daemon:
        refused = doctor_fix(state, "--yes")
        assert refused.returncode != 0
        assert "another arrakisd uses" in refused.stderr
        daemon.process.kill()
        daemon.process.wait()
        made = [state / one for one in ("vms/box", "scratch/x", "images/.new-half", "layers/0")]
        for one in made:
            one.mkdir(parents=True)
        kept = state / "snapshots" / "damaged"
        namespace = Path("/run/netns", namespace_of(state))
        with left_running(f"arrakisd {state}") as orphan:
            asked = doctor_fix(state, says="n\n")
            assert all(str(one) in asked.stdout for one in made)
            assert str(orphan.pid) in asked.stdout
            shown = json.loads(doctor_fix(state, "--json").stdout)
            assert not shown["removed"]
            assert {one["kind"] for one in shown["leftovers"]} >= {
                *("process", "network", "directory", "half-made image", "layer", "socket"),
            }
            assert is_running(orphan.pid)
            assert all(one.exists() for one in made)
            assert doctor_fix(state, "--yes").returncode == 0
            assert not is_running(orphan.pid)
        assert not any(one.exists() for one in made)
        assert not namespace.exists()
        assert not (state / "groups").exists()
        kept.mkdir()
        made[3].mkdir()
        assert "nothing was left" in doctor_fix(state).stdout  # what is damaged may need any layer
        assert kept.exists()
