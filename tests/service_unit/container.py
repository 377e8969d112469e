"""A container with a systemd of its own, in which the service is installed like anywhere.

Its packages are fetched once and kept, like the other things that are expensive to make, in the
machine's cache. What is changed in it is gone when it ends. It has a network of its own, which
leads nowhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from real_daemon import SLACK, passable_directory, wait_until

from arrakis_kernel import cache_directory
from arrakis_rootfs import BASE, ImageStore
from arrakis_rootfs.files import lock

ROOT = Path(__file__).parents[2]
_SUITE = "bookworm"
_PYTHON = "3.11"  # that of the suite
_BASE_PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "util-linux")
_DEADLINE = 60.0
_KEPT_UNUSED = 7 * 24 * 3600.0
_WHEELS = "/mnt/wheels"
_SOURCE = "/mnt/arrakis"


@frozen
class Container:
    """A booted container, and what was done on it by the host."""

    leader: int
    state: Path

    def run(
        self,
        *command: str,
        user: str = "root",
        check: bool = True,
        text: str | None = None,
        timeout: float = SLACK * 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, in no session and with nothing of the host's environment."""
        enter = ["nsenter", f"--target={self.leader}", "--all", "--"]
        environment = [
            "env",
            "-i",
            "--chdir=/",
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin",
            "LC_ALL=C.UTF-8",
        ]
        offline = ["PIP_NO_INDEX=1", f"PIP_FIND_LINKS={_WHEELS}"]
        done = subprocess.run(
            [*enter, *environment, *offline, "runuser", "-u", user, "--", *command],
            capture_output=True,
            text=True,
            input=text or "",
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done

    def output(self, *command: str, user: str = "root", **how: Any) -> str:
        """What a command inside prints."""
        return self.run(*command, user=user, **how).stdout.strip()

    def python(self, program: str, user: str) -> str:
        """What a program prints that uses the installed SDK."""
        interpreter = "/opt/arrakis/current/bin/python"
        return self.output(interpreter, "-c", program, user=user)

    def install(self, *arguments: str) -> str:
        """Run scripts/install; kernel and image are there, and cannot be made without a network."""
        return self.output(
            f"{_SOURCE}/scripts/install", "--no-images", *arguments, timeout=SLACK * 300
        )

    def property(self, name: str, unit: str = "arrakisd.service") -> str:
        """A property of a unit, as systemd knows it now."""
        return self.output("systemctl", "show", "--value", f"--property={name}", unit)

    def journal(self, *match: str) -> list[dict[str, Any]]:
        """The daemon's entries in the journal that match all of some fields."""
        lines = self.output("journalctl", "-o", "json", "--unit=arrakisd", *match).splitlines()
        return [json.loads(line) for line in lines]

    def write(self, path: str, content: str) -> None:
        """Write a file inside."""
        self.run("sh", "-c", f"mkdir -p $(dirname {path}) && cat > {path}", text=content)


@contextlib.contextmanager
def booted_container() -> Iterator[Container]:
    """Boot a container for the length of a block."""
    with passable_directory() as directory, _own_cgroups() as joining:
        state, cache = directory / "state", directory / "cache"
        state.mkdir()
        _copy_base_image(cache / "images")
        nspawn_command = ["systemd-nspawn", *_options(state, cache), "--boot"]
        command = ["sh", "-c", f'{joining}; exec "$@"', "sh", *nspawn_command]
        log = directory / "console.log"
        with log.open("wb") as console:
            nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        try:
            wait_until(lambda: _leader(nspawn.pid), _DEADLINE)
            container = Container(_leader(nspawn.pid) or 0, state)
            wait_until(lambda: _is_up(container), _DEADLINE)
            yield container
        finally:
            if leader := _leader(nspawn.pid):
                os.kill(leader, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                nspawn.wait(10)
            nspawn.kill()
            nspawn.wait()


@contextlib.contextmanager
def _own_cgroups() -> Iterator[str]:
    """Make cgroups for a container; give the shell command that joins them."""
    roots = [Path("/sys/fs/cgroup", part) for part in ("", "unified", "systemd")]
    groups = [
        root / f"arrakis-test-{os.getpid()}" for root in roots if (root / "cgroup.procs").exists()
    ]
    for group in groups:
        group.mkdir()
    try:
        yield "; ".join(["true", *(f"echo $$ > {group}/cgroup.procs" for group in groups)])
    finally:
        for group in groups:
            for made in sorted(group.rglob("*/"), reverse=True):
                made.rmdir()
            group.rmdir()


def _leader(nspawn: int) -> int | None:
    """The container's first process: it is number 1 there."""
    for pid in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "\t1\n" in re.findall(r"NSpid:.*\n", Path(f"/proc/{pid}/status").read_text())[0]:
                return int(pid)
    return None


def _is_up(container: Container) -> bool:
    state = container.run("systemctl", "is-system-running", check=False).stdout.strip()
    return state in ("running", "degraded")


def _options(state: Path, own_cache: Path) -> Sequence[str]:
    cache = cache_directory()
    return (
        *("--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe"),
        "--read-only",  # else only one container at a time could have the tree
        *(f"--machine=arrakis-test-{os.getpid()}", f"--directory={provide_tree(cache)}"),
        *(f"--bind={device}" for device in sorted(Path("/dev").glob("loop*"))),
        *("--volatile=overlay", f"--bind={state}:/var/lib/arrakis"),
        *(
            f"--bind={own_cache}:/var/cache/arrakis",
            f"--bind-ro={cache}/kernels:/var/cache/arrakis/kernels",
        ),
        *(f"--bind-ro={ROOT}:{_SOURCE}", f"--bind-ro={provide_wheels(cache)}:{_WHEELS}"),
    )


def _copy_base_image(target: Path) -> None:
    """Give a container's cache the base image, as a link where that can be."""
    image = ImageStore(cache_directory() / "images").resolve(BASE)
    shutil.copytree(image.path.parent, target / image.digest, copy_function=_link_or_copy)
    (target / "names").mkdir()
    shutil.copy(cache_directory() / "images/names" / BASE, target / "names" / BASE)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def provide_tree(cache: Path) -> Path:
    """Give the container's files: a distribution with the packages that scripts/setup installs."""
    listed = 'source scripts/setup && printf "%s\\n" "${packages[@]}"'
    wanted = subprocess.run(
        ["bash", "-c", listed], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    packages = ",".join((*_BASE_PACKAGES, *wanted))
    bootstrap = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", _SUITE]
    # An empty one is filled at each boot; without any, systemd asks questions.
    return _provided(
        cache, "tree", bootstrap, lambda tree: (tree / "etc/machine-id").write_text("")
    )


def provide_wheels(cache: Path) -> Path:
    """Give a directory with all that pip needs to build and install the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    needed = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(one for name in ("daemon", "mcp") for one in extras[name]),
    ]
    download = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *(f"--python-version={_PYTHON}", "--only-binary=:all:", *needed, "--dest"),
    ]
    return _provided(cache, "wheels", download)


def _provided(
    cache: Path,
    kind: str,
    command: Sequence[str],
    finish: Callable[[Path], object] | None = None,
) -> Path:
    """Give the directory that a command fills, its last argument; once for each command."""
    parent = cache / "service-test"
    digest = hashlib.sha256("\0".join(command).encode()).hexdigest()[:20]
    made = parent / f"{kind}-{digest}"
    parent.mkdir(parents=True, exist_ok=True)
    with lock(parent):
        if not made.exists():
            _make(made, command, finish)
        os.utime(made)
    return made


def _make(made: Path, command: Sequence[str], finish: Callable[[Path], object] | None) -> None:
    parent, kind = made.parent, made.name.partition("-")[0]
    with tempfile.TemporaryDirectory(prefix=".new-", dir=parent) as name:
        new = Path(name) / "made"
        new.mkdir()
        subprocess.run([*command, new], check=True, stdin=subprocess.DEVNULL)
        if finish is not None:
            finish(new)
        for old in parent.glob(f"{kind}-*"):
            if time.time() - old.stat().st_mtime > _KEPT_UNUSED:
                shutil.rmtree(old, ignore_errors=True)
        new.rename(made)
