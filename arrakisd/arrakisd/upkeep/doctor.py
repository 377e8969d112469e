"""What this host can do, what is missing, and the command that fixes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from arrakis_kernel import find_kernel
from arrakis_rpc.daemon_api import Check
from arrakis_rpc.errors import UnsupportedError

from ..host.net.foreign_rules import obstacles
from ..host.net.namespace import Namespace
from ..host.vmm.kvm_probe import DEVICE, device_problem
from ..host.vmm.registry import DRIVERS
from ..settings.config import Config, host_memory_mib
from ..settings.health import LOW_DISK
from ..settings.network import NetworkConfig

_APT = "apt-get install --no-install-recommends"

_PROGRAMS = (
    # program, Debian package, needed for, required
    ("qemu-img", "qemu-utils", "disk layers", True),
    ("mkfs.ext4", "e2fsprogs", "templates", True),
    ("setpriv", "util-linux", "VMMs that end with the daemon", True),
    ("nft", "nftables", "a network of mode 'bridge'", False),
    ("buildah", "buildah", "image builds", False),
    ("mkfs.erofs", "erofs-utils", "image builds", False),
    ("mmdebstrap", "mmdebstrap", "image builds without a registry", False),
)


def examine(config: Config, usual: str) -> list[Check]:
    """Check everything a VM needs; ``usual`` is the hypervisor in use. Blocks; use a thread."""
    return [
        *_hypervisors(config, usual),
        *(_program(*program) for program in _PROGRAMS),
        _kvm(config),
        _kernel(config),
        _vmm_user(config),
        _socket_group(config),
        *_forwarding(config.network),
        *_resources(config),
    ]


def _hypervisors(config: Config, chosen: str) -> Iterator[Check]:
    """Tell of each whether it can be used, and of the one in use first."""
    for name, factory in sorted(DRIVERS.items(), key=lambda item: item[0] != chosen):
        driver = factory(config)
        try:
            version = driver.version()
            driver.check_host()
        except UnsupportedError as error:
            yield Check(name, False, error.message, required=name == chosen, fix=error.hint)
        else:
            used = "; new machines run under it" if name == chosen else ""
            detail = f"{version}{used}{f'; {driver.caveat}' if driver.caveat else ''}"
            yield Check(name, True, detail, required=name == chosen)


def _program(name: str, package: str, purpose: str, required: bool) -> Check:
    path = shutil.which(name)
    return Check(
        name=name,
        ok=path is not None,
        detail=path or f"not installed; needed for {purpose}",
        required=required,
        fix=None if path else f"{_APT} {package}",
    )


def _kvm(config: Config) -> Check:
    identity = config.vmm_identity()
    problem = device_problem(identity)
    if problem is None:
        detail = "there; whether guests really run under it is tried when the daemon starts"
        return Check("kvm", True, detail, required=False)
    own, others = "usermod -aG kvm $USER", "chgrp kvm /dev/kvm && chmod 660 /dev/kvm"
    return Check(
        "kvm",
        False,
        f"{problem}: guests are emulated, several times slower",
        required=False,
        fix=(own if identity is None else others) if DEVICE.exists() else None,
    )


def _kernel(config: Config) -> Check:
    found = find_kernel(Path(config.cache_dir))
    given = config.kernel and config.initramfs
    return Check(
        "guest kernel",
        bool(found or given),
        f"{found.version}" if found else str(config.kernel or f"none in {config.cache_dir}"),
        fix=None if found or given else "scripts/setup",
    )


def _vmm_user(config: Config) -> Check:
    if os.geteuid() != 0:
        return Check("vmm user", True, "VMMs run as the daemon's own user", required=False)
    there = config.vmm_identity() is not None
    return Check(
        "vmm user",
        there,
        f"VMMs run as {config.vmm_user}" if there else "VMMs run as root",
        required=False,
        fix=None if there else f"useradd --system --shell /usr/sbin/nologin {config.vmm_user}",
    )


def _socket_group(config: Config) -> Check:
    there = config.socket_gid() is not None
    return Check(
        "socket group",
        there,
        f"members of '{config.socket_group}' may use the socket, and are root in every VM"
        if there
        else f"there is no group '{config.socket_group}': only the daemon's user has access",
        required=False,
        fix=None if there else f"groupadd --system {config.socket_group}",
    )


def _forwarding(network: NetworkConfig) -> Iterator[Check]:
    if network.mode != "bridge":
        return
    try:
        found = Namespace(network.namespace).run_here(partial(obstacles, network.bridge))
    except (OSError, UnsupportedError):
        return  # who may not look; or no such namespace, or library, of which others tell
    for one in found:
        detail = f"the table '{one.table}' drops what guests send, as Docker's and firewalls do"
        yield Check("forwarding", False, detail, required=False, fix=one.remedy)
    if not found:
        yield Check("forwarding", True, "no other firewall stops what guests send", required=False)


def _resources(config: Config) -> Iterator[Check]:
    memory = host_memory_mib()
    yield Check(
        "memory",
        memory >= config.memory_mib,
        f"{memory} MiB; a sandbox has {config.memory_mib} unless asked for otherwise",
    )
    state = Path(config.state_dir)
    while not state.exists():
        state = state.parent
    free = shutil.disk_usage(state).free
    yield Check(
        "disk space",
        free > LOW_DISK,
        f"{free // 2**20} MiB free for {config.state_dir}",
        fix=None if free > LOW_DISK else f"make room on the file system of {config.state_dir}",
    )
