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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import asdict, field, fields, frozen
from attrs.validators import ge, in_, le

from arrakis_kernel import cache_directory
from arrakis_rpc.converter import structure
from arrakis_rpc.errors import InvalidParamsError

DEFAULT_FILE = Path("/etc/arrakis/arrakisd.toml")

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
    vmm_user: str = "arrakis-vmm"
    vcpus: int = field(factory=_half_of_the_cores, validator=[ge(1), le(64)])
    memory_mib: int = field(default=1024, validator=ge(128))
    disk_mib: int = field(default=2048, validator=ge(64))
    start_timeout: float = field(default=60.0, validator=ge(1))
    boot_timeout: float = field(default=600.0, validator=ge(1))
    stop_timeout: float = field(default=5.0, validator=ge(0))
    log_format: str = field(default="auto", validator=in_(("auto", "json", "text")))
    log_level: str = field(default="info", validator=in_(("debug", "info", "warning", "error")))

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
        lines = [
            f"{key} = {_toml_value(value)}"
            for key, value in asdict(self).items()
            if value is not None
        ]
        return "\n".join(lines) + "\n"


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
    return structure(settings, Config)


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            settings = tomllib.load(stream)
    except OSError as error:
        raise InvalidParamsError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidParamsError(f"{file} is not TOML: {error}") from error
    known = [attribute.name for attribute in fields(Config)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise InvalidParamsError(f"{file}: unknown key '{key}'", hint=hint)
    return settings


def _toml_value(value: object) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's, too; DEL is all that only TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
