"""The cache of prepared kernels: what is there, and making what is not.

    <cache>/kernels/<digest of the inputs>/{vmlinux,bzImage,initramfs.cpio,manifest.json}
    <cache>/kernels/current -> <digest>

A kernel is complete or absent: it is made in a temporary directory and renamed. Older kernels
stay, because snapshots of machines that ran on them are restored with the same files.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from arrakis_kernel.bzimage import extract_vmlinux
from arrakis_kernel.errors import KernelFormatError, KernelStoreError
from arrakis_kernel.initramfs import APPLETS, MODULES, VSOCK_MODULES, build_initramfs, init_script
from arrakis_kernel.packages import (
    BUSYBOX_PACKAGE,
    Package,
    find_kernel_packages,
    find_package,
    unpack_package,
)

# Raise this when the way the files are made changes without any input changing.
FORMAT_VERSION = 1

_MANIFEST = "manifest.json"
TEMPORARY = ".new-"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class KernelFiles:
    """What a hypervisor needs to start a guest."""

    vmlinux: Path
    bzimage: Path
    initramfs: Path
    version: str
    """Version of the distribution's kernel package."""
    digest: str
    """Identifies this kernel; the same inputs give the same digest on every machine."""


def find_kernel(cache: Path) -> KernelFiles | None:
    """Return the current kernel, or None when there is none.

    It may have been made by an older recipe than this program's: it goes on working until
    set-up makes the next one. Needs no network. Raises KernelStoreError when the cache is there
    but broken.
    """
    try:
        digest = (_kernels(cache) / "current").readlink().name
    except FileNotFoundError:
        return None
    return load_kernel(cache, digest)


def find_current_kernel(cache: Path) -> KernelFiles | None:
    """Return the kernel that is in use, unless this version would make it in another way."""
    kernel = find_kernel(cache)
    if kernel is None or _read_manifest(kernel.vmlinux.parent)["recipe"] != _recipe():
        return None
    return kernel


def load_kernel(cache: Path, digest: str) -> KernelFiles | None:
    """Return the kernel with this digest, current or not, or None when the cache has it not."""
    directory = _kernels(cache) / digest
    if not _DIGEST.fullmatch(digest) or not directory.is_dir():
        return None
    manifest = _read_manifest(directory)
    if manifest["format_version"] != FORMAT_VERSION:
        return None
    for name, expected in manifest["files"].items():
        # Hashing 70 MB at every start would cost more than it finds; a cut-off file is found.
        if (directory / name).stat().st_size != expected["size"]:
            raise KernelStoreError(f"{directory / name} is damaged; remove {directory}")
    return KernelFiles(
        vmlinux=directory / "vmlinux",
        bzimage=directory / "bzImage",
        initramfs=directory / "initramfs.cpio",
        version=manifest["version"],
        digest=digest,
    )


def ensure_kernel(cache: Path, progress: Callable[[str], None]) -> KernelFiles:
    """Return the current kernel, fetching and preparing it first when there is none.

    `progress` is told in plain sentences what is being done. Two callers at once are safe: the
    second waits and finds the work done. Raises KernelError.
    """
    if kernel := find_current_kernel(cache):
        return kernel
    with exclusive(_kernels(cache)):
        if kernel := find_current_kernel(cache):
            return kernel
        sweep(_kernels(cache))
        packages = find_kernel_packages()
        busybox = find_package(BUSYBOX_PACKAGE)
        digest = _digest_inputs([*packages, busybox])
        if load_kernel(cache, digest) is None:
            _prepare(_kernels(cache), digest, packages, busybox, progress)
        point_at(_kernels(cache), digest, "current")
    kernel = find_kernel(cache)
    if kernel is None:
        raise KernelStoreError(
            f"the kernel vanished from {_kernels(cache)} right after it was made"
        )
    return kernel


def _prepare(
    kernels: Path,
    digest: str,
    packages: list[Package],
    busybox: Package,
    progress: Callable[[str], None],
) -> None:
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=kernels) as scratch:
        downloads, tree = (Path(scratch) / name for name in ("deb", "tree"))
        for directory in (downloads, tree):
            directory.mkdir()
        for package in (*packages, busybox):
            progress(f"fetching {package.name} {package.version}")
            unpack_package(package, downloads, tree)
        progress("unpacking the kernel and building the initramfs")
        image = single(tree, "boot/vmlinuz-*").read_bytes()
        # usr/lib first: where /lib is a link (merged /usr), packages come in either spelling.
        modules = single(tree, "usr/lib/modules/*", "lib/modules/*")
        files = {
            "vmlinux": extract_vmlinux(image),
            "bzImage": image,
            "initramfs.cpio": build_initramfs(
                modules, single(tree, "usr/bin/busybox", "bin/busybox")
            ),
        }
        publish(kernels, Path(scratch), digest, files, [*packages, busybox], _recipe())


def publish(
    kernels: Path,
    scratch: Path,
    digest: str,
    files: dict[str, bytes],
    packages: list[Package],
    recipe: str,
) -> None:
    """Put a whole kernel, of the first of these packages, into the cache; it is there or absent."""
    result = scratch / "result"
    result.mkdir()
    for name, data in files.items():
        _write(result / name, data)
    manifest = {
        "format_version": FORMAT_VERSION,
        "version": packages[0].version,
        "packages": {package.name: package.version for package in packages},
        "recipe": recipe,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in files.items()
        },
    }
    _write(result / _MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode())
    result.chmod(0o755)
    result.rename(kernels / digest)
    _sync_directory(kernels)


def _recipe() -> str:
    """Digest of everything in this program that shapes the result."""
    parts = (
        str(FORMAT_VERSION).encode(),
        "\n".join(APPLETS + MODULES + VSOCK_MODULES).encode(),
        init_script(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _digest_inputs(packages: list[Package]) -> str:
    lines = [_recipe(), *(f"{package.name}={package.version}" for package in packages)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _kernels(cache: Path) -> Path:
    return cache / "kernels"


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise KernelStoreError(f"cannot read {directory / _MANIFEST}: {error}") from error
    return cast(dict[str, Any], manifest)


def single(tree: Path, *patterns: str) -> Path:
    """Return the one file that matches one of the patterns; raises KernelFormatError."""
    found = [path for pattern in patterns for path in sorted(tree.glob(pattern))]
    if len(found) != 1:
        raise KernelFormatError(f"the packages hold {len(found)} of {' or '.join(patterns)}")
    return found[0]


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def point_at(kernels: Path, digest: str, name: str) -> None:
    """Let a name stand for a kernel from now on; the caller holds the lock."""
    temporary = kernels / f"{TEMPORARY}{name}"
    temporary.symlink_to(digest)
    temporary.rename(kernels / name)
    _sync_directory(kernels)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(kernels: Path) -> None:
    """Remove what a killed run left behind; the caller holds the lock."""
    for leftover in kernels.glob(f"{TEMPORARY}*"):
        if leftover.is_symlink():
            leftover.unlink()
        else:
            shutil.rmtree(leftover)


@contextmanager
def exclusive(kernels: Path) -> Iterator[None]:
    """Keep others from making kernels there during a block."""
    try:
        kernels.mkdir(parents=True, exist_ok=True)
        lock = (kernels / ".lock").open("w")
    except OSError as error:
        raise KernelStoreError(f"cannot write the kernel cache {kernels}: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
