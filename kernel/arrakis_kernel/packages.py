"""Fetching distribution packages without installing them on the host.

The host's own apt does the downloading, so mirrors, proxies and signatures are whatever its
administrator set up.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arrakis_kernel.errors import KernelToolError
from arrakis_kernel.tools import run_tool

# Small kernels made for virtual machines: Debian's, then Ubuntu's.
KERNEL_METAPACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")
SOURCE_METAPACKAGE = "linux-source"
BUSYBOX_PACKAGE = "busybox-static"

_KERNEL_PACKAGE = re.compile(r"linux-(?:image|modules)-\d[a-z0-9.+-]*")


@dataclass(frozen=True)
class Package:
    """One package in the version that apt would install."""

    name: str
    version: str


def find_kernel_packages() -> list[Package]:
    """Return the packages that hold the newest kernel and its modules, image first.

    Raises KernelToolError when apt knows no suitable kernel.
    """
    for metapackage in KERNEL_METAPACKAGES:
        image = next(iter(_kernel_dependencies(metapackage)), None)
        if image is not None:
            # Debian's image package holds the modules too, Ubuntu's depends on them.
            return [find_package(name) for name in (image, *_kernel_dependencies(image))]
    raise KernelToolError(
        f"apt knows none of the packages {', '.join(KERNEL_METAPACKAGES)}; try: apt-get update"
    )


def find_source_package() -> Package:
    """Return the source of the distribution's kernel, as one package.

    Raises KernelToolError when apt knows none.
    """
    output = run_tool(["apt-cache", "depends", SOURCE_METAPACKAGE], package="apt").decode()
    found = re.search(r"Depends: (linux-source-\d\S*)$", output, re.MULTILINE)
    if found is None:
        raise KernelToolError(f"apt knows no package {SOURCE_METAPACKAGE!r}; try: apt-get update")
    return find_package(found[1])


def find_package(name: str) -> Package:
    """Return the candidate version of a package; raises KernelToolError when there is none."""
    output = run_tool(["apt-cache", "policy", name], package="apt").decode()
    candidate = re.search(r"^\s+Candidate: (\S+)$", output, re.MULTILINE)
    if candidate is None or candidate[1] == "(none)":
        raise KernelToolError(f"apt knows no package {name!r}; try: apt-get update")
    return Package(name, candidate[1])


def unpack_package(package: Package, downloads: Path, tree: Path) -> None:
    """Download a package into the existing directory `downloads` and unpack it over `tree`."""
    run_tool(
        # Root's download directory may be closed to apt's sandbox user; apt would only warn.
        ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", _exact(package)],
        package="apt",
        directory=downloads,
    )
    archive = _only(sorted(downloads.glob(f"{package.name}_*.deb")), package)
    run_tool(["dpkg-deb", "-x", str(archive), str(tree)], package="dpkg")


def _exact(package: Package) -> str:
    return f"{package.name}={package.version}"


def _only(archives: Sequence[Path], package: Package) -> Path:
    if len(archives) != 1:
        raise KernelToolError(f"apt-get downloaded {len(archives)} files for {_exact(package)}")
    return archives[0]


def _kernel_dependencies(name: str) -> list[str]:
    """The kernel packages that a package depends on, unsigned builds left out."""
    output = run_tool(["apt-cache", "depends", "--important", name], package="apt").decode()
    found = re.findall(r"^\s*\|?Depends: (\S+)$", output, re.MULTILINE)
    return [dependency for dependency in found if _KERNEL_PACKAGE.fullmatch(dependency)]
