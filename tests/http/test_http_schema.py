"""Requests made from the description, by schemathesis: as it says, and not as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_daemon import Web, web_daemon
from real_daemon import copy_templates, passable_directory

from arrakis import SandboxManager

pytestmark = pytest.mark.vm

# One never ends, and one takes bytes, of which hardly any are an archive.
UNFIT = ("--exclude-path=/v1/events", "--exclude-name=POST /v1/snapshots")
# What is removed could be the guest's own.
IN_VM = (
    "--include-path-regex=^/v1/vms/{name}/"
    "(cmd|directory|exec|file|files|egress|health|ports|stat)$",
    "--exclude-method=DELETE",
)


# What it learned from one answer, it would use in the next request: and so start machines of the
# images that there are, and dozens of forks of these.
_INVENT = """[phases]
coverage.extra-data-sources.responses = false
fuzzing.extra-data-sources.responses = false
"""


# A host that has not got what is asked for is no failure of the daemon's.
_WHAT_MAY_BE = """[checks]
not_a_server_error.expected-statuses = ["1xx", "2xx", "3xx", "4xx", 503]
"""


@pytest.fixture(scope="module")
def frugal(state_dir: Path) -> Iterator[Web]:
    """A daemon in which a start that names no image finds none, and so costs nothing."""
    with passable_directory() as directory:
        copy_templates(state_dir, directory / "state")
        with web_daemon(directory / "state", top='image = "absent"') as web:
            yield web


def fuzz(
    web: Web,
    directory: Path,
    examples: int,
    phases: str,
    *options: str,
    name: str = "",
    checks: tuple[str, ...] = ("--checks=all", "--exclude-checks=ignored_auth"),
) -> int:
    """Run schemathesis; give how many requests it made.

    One of its checks tries wrong tokens, of which only the first few are answered with 401.
    """
    config = directory / "schemathesis.toml"
    parameters = f'[parameters]\n"path.name" = "{name}"\n' if name else ""
    config.write_text(f"{_INVENT}{_WHAT_MAY_BE}{parameters}")
    url = f"http://127.0.0.1:{web.port}/openapi.json"
    argv = [
        *(sys.executable, "-m", "schemathesis.cli", f"--config-file={config}", "run", url),
        *(*checks, f"--max-examples={examples}", f"--phases={phases}", "--no-color"),
        *(f"--header=Authorization: Bearer {web.token}", "--continue-on-failure", "--seed=4"),
        *("--suppress-health-check=all", "--request-timeout=60", "--warnings=off"),
        *("--generation-database=none", *options),
    ]
    ended = subprocess.run(argv, capture_output=True, text=True, cwd=directory, timeout=1700)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    made = re.search(r"(\d+) generated", ended.stdout)
    assert made, ended.stdout[-2000:]
    assert "defect of the daemon" not in web.daemon.log_text()
    return int(made[1])


def test_every_answer_is_as_described(frugal: Web, tmp_path: Path) -> None:
    """A thousand requests to all routes: none fails the daemon, all are answered as described."""
    assert fuzz(frugal, tmp_path, 20, "coverage,fuzzing", *UNFIT) >= 1000


def test_every_kind_of_answer_needs_a_token(frugal: Web, tmp_path: Path) -> None:
    """A wrong one, and none, are refused where a good one is let in."""
    only = ("--checks=ignored_auth",)
    assert fuzz(frugal, tmp_path, 1, "fuzzing", "--include-path=/v1/vms", checks=only) >= 3


def test_answers_from_a_guest_are_as_described(frugal: Web, tmp_path: Path) -> None:
    """A VM gets the commands and files that come of it, and runs on."""
    with (
        SandboxManager(socket=frugal.daemon.socket) as manager,
        manager.start_sandbox("fuzzed", image="base") as sandbox,
    ):
        assert fuzz(frugal, tmp_path, 5, "fuzzing", *IN_VM, name="fuzzed") > 20
        assert sandbox.run("true").ok


@pytest.mark.slow
def test_thousands_of_answers_are_as_described(frugal: Web, tmp_path: Path) -> None:
    """The same with many more examples, in sequences, too, some of which boot an image."""
    patient = ("--max-response-time=120",)
    assert fuzz(frugal, tmp_path, 200, "coverage,fuzzing,stateful", *UNFIT, *patient) >= 5000
