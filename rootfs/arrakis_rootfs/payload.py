"""The guest agent as a directory to copy into an image.

The agent and the libraries it needs stand on their own: `python3 -I -S` sees nothing that an
image's distribution, or a user with pip, put among the guest's own Python packages. Pure Python
code is copied from this installation, so both ends of the protocol run the same version. The one
compiled library, msgpack, is taken as the wheels of every Python a guest may have; their
extension modules carry the Python's version in their file names and live side by side.
"""

import hashlib
import importlib.metadata
import importlib.util
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import trio

from arrakis_rootfs.commands import run_command
from arrakis_rootfs.errors import ImageContentError
from arrakis_rootfs.files import hash_tree

AGENT = "arrakis-agent"
"""File name of the launcher."""

_PACKAGES = ("arrakis_agent", "arrakis_rpc")
# Distribution, and what of it a guest needs.
_VENDORED = (
    ("attrs", ("attr", "attrs")),
    ("cattrs", ("cattr", "cattrs")),
    ("typing_extensions", ("typing_extensions.py",)),
)
# Everything from the oldest Python that the agent runs on.
_GUEST_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# A wheel says which C library it needs in one of several spellings, old and new.
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")

_LAUNCHER = """\
#!/usr/bin/python3 -IS
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from arrakis_agent.__main__ import main

sys.exit(main())
"""


def hash_payload() -> str:
    """Return a digest that changes when what `assemble_payload` would make changes."""
    total = hashlib.sha256(_LAUNCHER.encode())
    for distribution in ("msgpack", *(name for name, _ in _VENDORED)):
        total.update(f"{distribution}={importlib.metadata.version(distribution)}\0".encode())
    total.update("\0".join((*_GUEST_PYTHONS, *_PLATFORMS)).encode())
    total.update(hash_tree(*map(_package_directory, _PACKAGES), pattern="*.py").encode())
    return total.hexdigest()


async def assemble_payload(
    destination: Path, downloads: Path, on_line: Callable[[str], None]
) -> None:
    """Write the agent and all it imports into the new directory `destination`.

    `downloads` keeps the fetched wheels for the next time; only the first time needs a network.
    """
    wheels = await _fetch_msgpack(downloads, on_line)
    await trio.to_thread.run_sync(_assemble, destination, wheels)


def _assemble(destination: Path, wheels: Path) -> None:
    destination.mkdir()
    for package in _PACKAGES:
        _copy_sources(_package_directory(package), destination / package)
    for distribution, names in _VENDORED:
        _copy_distribution(distribution, names, destination)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith("msgpack/")]
            archive.extractall(destination, members)
    launcher = destination / AGENT
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)


async def _fetch_msgpack(downloads: Path, on_line: Callable[[str], None]) -> Path:
    version = importlib.metadata.version("msgpack")
    name = "-".join(("msgpack", version, "for", *_GUEST_PYTHONS))
    directory = downloads / name
    if directory.is_dir():
        return directory
    partial = downloads / f".new-{name}"
    if partial.exists():
        await trio.to_thread.run_sync(shutil.rmtree, partial)
    partial.mkdir(parents=True)
    for python in _GUEST_PYTHONS:
        on_line(f"fetching msgpack {version} for Python {python}")
        await run_command(_download_command(f"msgpack=={version}", python, partial))
    partial.rename(directory)
    return directory


def _download_command(requirement: str, python: str, directory: Path) -> list[str]:
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--implementation", "cp"),
        *("--python-version", python, *platforms, "--dest", str(directory), requirement),
    ]


def _package_directory(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImageContentError(f"the guest needs {package}, which is not installed here")
    return Path(spec.origin).parent


def _copy_sources(source: Path, destination: Path) -> None:
    for file in source.rglob("*.py"):
        target = destination / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def _copy_distribution(distribution: str, names: tuple[str, ...], destination: Path) -> None:
    for file in importlib.metadata.files(distribution) or ():
        if file.parts[0] in names and file.suffix == ".py":
            target = destination / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)
    for name in names:
        if not (destination / name).exists():
            raise ImageContentError(f"the installed {distribution} has no {name} to copy")
