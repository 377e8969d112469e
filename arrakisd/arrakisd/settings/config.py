"""The daemon's settings: flags win over environment, environment over file, file over defaults.

Where the Go program's ``config.yaml`` has a key for the same thing, ``docs/configuration.md``
names it.
"""

from __future__ import annotations

import difflib
import grp
import json
import os
import pwd
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import AttrsInstance, asdict, field, fields, frozen
from attrs.validators import ge, in_, le, optional

from arrakis_kernel import cache_directory
from arrakis_rpc.converter import structure
from arrakis_rpc.errors import InvalidParamsError

from .health import HealthConfig
from .http import HttpConfig
from .limits import LimitsConfig
from .network import NetworkConfig
from .pool import PoolConfig
from .snapshots import SnapshotsConfig

DEFAULT_FILE = Path("/etc/arrakis/arrakisd.toml")

_TABLES: dict[str, type[AttrsInstance]] = {
    "network": NetworkConfig,
    "http": HttpConfig,
    "health": HealthConfig,
    "limits": LimitsConfig,
    "pool": PoolConfig,
    "snapshots": SnapshotsConfig,
}

_ENVIRONMENT = {
    "ARRAKIS_SOCKET": "socket",
    "ARRAKIS_STATE": "state_dir",
    "ARRAKIS_CACHE": "cache_dir",
}


def host_memory_mib() -> int:
    """Memory of this host, in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _half_of_the_cores() -> int:
    return min(8, max(1, (os.cpu_count() or 1) // 2))


def _usual_keys() -> list[str]:
    return ["/etc/arrakis/authorized_keys", "~/.ssh/id_*.pub"]


@frozen
class Config:
    """Effective settings. Sizes in MiB, times in seconds."""

    state_dir: str = "/var/lib/arrakis"
    socket: str = "/run/arrakis/arrakisd.sock"
    socket_group: str = "arrakis"
    cache_dir: str = field(factory=lambda: str(cache_directory()))
    image: str = "base"
    kernel: str | None = None
    initramfs: str | None = None
    vmm: str = "auto"
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    qemu_binary: str = "qemu-system-x86_64"
    cloud_hypervisor_binary: str = "cloud-hypervisor"
    firecracker_binary: str = "firecracker"
    firecracker_jailer: str | None = None
    vmm_user: str = "arrakis-vmm"
    vcpus: int = field(factory=_half_of_the_cores, validator=[ge(1), le(64)])
    memory_mib: int = field(default=1024, validator=ge(128))
    disk_mib: int = field(default=2048, validator=ge(64))
    merge_layers: int = field(default=16, validator=ge(2))
    start_timeout: float = field(default=60.0, validator=ge(1))
    boot_timeout: float = field(default=600.0, validator=ge(1))
    stop_timeout: float = field(default=5.0, validator=ge(0))
    ttl: float | None = field(default=None, validator=optional(ge(0)))
    idle_timeout: float | None = field(default=None, validator=optional(ge(0)))
    on_timeout: Literal["stop", "suspend", "destroy"] = "suspend"
    on_shutdown: Literal["stop", "suspend"] = "stop"
    suspend_timeout: float = field(default=60.0, validator=ge(1))
    ssh_authorized_keys: list[str] = field(factory=_usual_keys)
    log_format: str = field(default="auto", validator=in_(("auto", "journal", "json", "text")))
    log_level: str = field(default="info", validator=in_(("debug", "info", "warning", "error")))
    network: NetworkConfig = field(factory=NetworkConfig)
    http: HttpConfig = field(factory=HttpConfig)
    pool: PoolConfig = field(factory=PoolConfig)
    snapshots: SnapshotsConfig = field(factory=SnapshotsConfig)
    limits: LimitsConfig = field(factory=LimitsConfig)
    health: HealthConfig = field(factory=HealthConfig)

    def vmm_identity(self) -> tuple[int, int] | None:
        """Uid and gid under which VMMs run; None for the daemon's own."""
        if os.geteuid() != 0:
            return None
        try:
            entry = pwd.getpwnam(self.vmm_user)
        except KeyError:
            return None
        return entry.pw_uid, entry.pw_gid

    def give_to_vmm(self, path: Path) -> None:
        """Make a file or directory the property of the user under which VMMs run."""
        if identity := self.vmm_identity():
            os.chown(path, *identity)

    def socket_gid(self) -> int | None:
        """Gid of the group that may use the socket; None where there is no such group."""
        try:
            return grp.getgrnam(self.socket_group).gr_gid
        except KeyError:
            return None

    def to_toml(self) -> str:
        """Give the settings in the form of the configuration file."""
        return "".join(_toml_lines(asdict(self)))


def load_config(
    file: Path | None,
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """Put the settings together.

    A ``file`` that was asked for must exist; the default one need not. Raises
    `InvalidParamsError` for an unknown key (naming the nearest one), a wrong type or value.
    """
    named = file or (Path(p) if (p := environment.get("ARRAKIS_CONFIG")) else None)
    settings: dict[str, Any] = {}
    if named is not None or DEFAULT_FILE.exists():
        settings |= _read(named or DEFAULT_FILE)
    settings |= {key: environment[var] for var, key in _ENVIRONMENT.items() if environment.get(var)}
    settings |= {key: value for key, value in flags.items() if value is not None}
    if (address := settings.pop("http_address", None)) is not None:
        table = settings.get("http")
        settings["http"] = {**(table if isinstance(table, dict) else {}), "address": address}
    return structure(settings, Config)


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            settings = tomllib.load(stream)
    except OSError as error:
        raise InvalidParamsError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidParamsError(f"{file} is not TOML: {error}") from error
    _check_keys(settings, Config, str(file))
    for name, kind in _TABLES.items():
        if isinstance(table := settings.get(name), dict):
            _check_keys(table, kind, f"{file}: [{name}]")
    return settings


def _check_keys(table: Mapping[str, Any], kind: type[AttrsInstance], where: str) -> None:
    known = [attribute.name for attribute in fields(kind)]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise InvalidParamsError(f"{where}: unknown key '{key}'", hint=hint)


def _toml_lines(table: Mapping[str, Any]) -> Iterator[str]:
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    for key, value in table.items():
        if value is not None and key not in tables:
            yield f"{key} = {_toml_value(value)}\n"
    for key, value in tables.items():
        yield f"\n[{key}]\n"
        yield from _toml_lines(value)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, too; DEL is all that only TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        pairs = (f"{key} = {_toml_value(item)}" for key, item in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return str(value)
