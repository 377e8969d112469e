"""The small kernel: built here from the distribution's source, with all that guests need built in.

    <cache>/kernels/small -> <digest of what it is made of>

It boots without loading a module. Nothing uses it by itself: `kernel` and `initramfs` in the
daemon's configuration choose it. Unlike the stock kernel it takes a compiler, and many minutes.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from arrakis_kernel.bzimage import extract_vmlinux
from arrakis_kernel.errors import KernelFormatError, KernelToolError
from arrakis_kernel.initramfs import APPLETS, build_plain_initramfs, init_script
from arrakis_kernel.packages import (
    BUSYBOX_PACKAGE,
    Package,
    find_package,
    find_source_package,
    unpack_package,
)
from arrakis_kernel.store import (
    FORMAT_VERSION,
    TEMPORARY,
    KernelFiles,
    exclusive,
    load_kernel,
    point_at,
    publish,
    single,
    sweep,
)
from arrakis_kernel.tools import run_tool

_NAME = "small"
_PROGRAMS = ("make", "gcc", "ld", "flex", "bison", "bc", "lz4", "tar", "xz")
_PACKAGES = "make gcc binutils flex bison bc libelf-dev lz4 tar xz-utils"
# The same inputs are to give the same kernel, whoever builds it and when.
_REPRODUCIBLE = (
    "KBUILD_BUILD_TIMESTAMP=1970-01-01",
    "KBUILD_BUILD_USER=arrakis",
    "KBUILD_BUILD_HOST=arrakis",
)
_SETTING = re.compile(r"(CONFIG_\w+)=(\S+)|# (CONFIG_\w+) is not set")


def find_small_kernel(cache: Path) -> KernelFiles | None:
    """Return the small kernel, or None where nobody has built it.

    Raises KernelStoreError when the cache is there but broken.
    """
    try:
        digest = (cache / "kernels" / _NAME).readlink().name
    except FileNotFoundError:
        return None
    return load_kernel(cache, digest)


def ensure_small_kernel(cache: Path, progress: Callable[[str], None]) -> KernelFiles:
    """Return the small kernel, building it first where it is missing, or would be another now.

    Two callers at once are safe: the second waits and finds the work done. Raises KernelError.
    """
    kernels = cache / "kernels"
    with exclusive(kernels):
        _require_programs()
        source, busybox = find_source_package(), find_package(BUSYBOX_PACKAGE)
        compiler = run_tool(["gcc", "--version"], package="gcc").decode().splitlines()[0]
        digest = _digest_inputs(source, busybox, compiler)
        if load_kernel(cache, digest) is None:
            sweep(kernels)
            _build(kernels, digest, source, busybox, progress)
        point_at(kernels, digest, _NAME)
    kernel = find_small_kernel(cache)
    assert kernel is not None
    return kernel


def config_fragment() -> str:
    """Return what the small kernel's configuration has to have."""
    return resources.files("arrakis_kernel").joinpath("data/small.config").read_text()


def check_configuration(wanted: str, result: str) -> None:
    """Raise KernelFormatError for settings that did not take, most often for lack of another."""
    taken = _settings(result)
    missing = [
        f"{name}={value}"
        for name, value in _settings(wanted).items()
        if taken.get(name, "n") != value
    ]
    if missing:
        raise KernelFormatError(
            f"this kernel's source does not take {', '.join(missing)}: "
            "they are gone from it, or depend on what is not set"
        )


def _settings(text: str) -> dict[str, str]:
    found = (_SETTING.fullmatch(line) for line in text.splitlines())
    return {match[1] or match[3]: match[2] or "n" for match in found if match}


def _require_programs() -> None:
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        raise KernelToolError(
            f"to build a kernel takes {', '.join(missing)}; try: apt-get install "
            f"--no-install-recommends {_PACKAGES}"
        )


def _build(
    kernels: Path,
    digest: str,
    source: Package,
    busybox: Package,
    progress: Callable[[str], None],
) -> None:
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=kernels) as scratch:
        downloads, tree, sources = (Path(scratch) / name for name in ("deb", "tree", "source"))
        for directory in (downloads, tree, sources):
            directory.mkdir()
        for package in (source, busybox):
            progress(f"fetching {package.name} {package.version}")
            unpack_package(package, downloads, tree)
        progress("unpacking the source")
        archive = single(tree, "usr/src/linux-source-*.tar.*", "usr/src/*/linux-source-*.tar.*")
        run_tool(["tar", "-xf", str(archive), "-C", str(sources)], package="tar")
        image = compile_kernel(single(sources, "*"), progress)
        files = {
            "vmlinux": extract_vmlinux(image),
            "bzImage": image,
            "initramfs.cpio": build_plain_initramfs(single(tree, "usr/bin/busybox", "bin/busybox")),
        }
        publish(kernels, Path(scratch), digest, files, [source, busybox], _recipe())


def compile_kernel(source: Path, progress: Callable[[str], None]) -> bytes:
    """Configure and compile an unpacked source; return its bzImage."""
    fragment = source / ".arrakis.config"
    fragment.write_text(config_fragment())
    make = ["nice", "make", "-s", *_REPRODUCIBLE]
    progress("configuring the kernel")
    run_tool(
        [*make, f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"], package="make", directory=source
    )
    check_configuration(config_fragment(), (source / ".config").read_text())
    jobs = os.cpu_count() or 1
    progress(f"compiling the kernel with {jobs} jobs (this takes many minutes)")
    run_tool([*make, f"-j{jobs}", "bzImage"], package="make", directory=source)
    return (source / "arch/x86/boot/bzImage").read_bytes()


def _recipe() -> str:
    parts = (
        str(FORMAT_VERSION).encode(),
        config_fragment().encode(),
        "\n".join(APPLETS).encode(),
        init_script(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _digest_inputs(source: Package, busybox: Package, compiler: str) -> str:
    packages = [f"{package.name}={package.version}" for package in (source, busybox)]
    return hashlib.sha256("\n".join([_recipe(), *packages, compiler]).encode()).hexdigest()
