"""What of the settings can change while the daemon runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from attrs import asdict, evolve, frozen

from arrakis_rpc.errors import ArrakisError

from ..logs.configure import configure_logs
from ..machines.surroundings import Surroundings
from ..settings.config import Config
from .service_manager import tell

# All of these are looked up when a machine starts, a template is built, or the daemon ends.
_CHANGEABLE = frozenset(
    {
        "image",
        "kernel",
        "initramfs",
        "vcpus",
        "memory_mib",
        "disk_mib",
        "start_timeout",
        "boot_timeout",
        "stop_timeout",
        "ttl",
        "idle_timeout",
        "on_timeout",
        "on_shutdown",
        "suspend_timeout",
        "ssh_authorized_keys",
        "log_format",
        "log_level",
        "network.egress",
        "network.port_forwards",
        "network.mbit",
        "limits.vms",
        "limits.snapshots",
        "limits.disk_mib",
        "limits.memory_overcommit",
        "limits.vcpus",
        "limits.queue",
        "limits.queue_timeout",
        "health.interval",
        "health.timeout",
        "health.on_unresponsive",
    }
)

log = structlog.get_logger()


@frozen
class Reload:
    """What became of settings that were read again."""

    config: Config
    changed: dict[str, Any]
    needs_restart: list[str]


def reload_settings(surroundings: Surroundings, read_config: Callable[[], Config]) -> None:
    """Read the settings again, and say what changed and what needs a restart.

    Settings that are not valid change nothing.
    """
    tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
    try:
        reload = take_over(surroundings.config, read_config())
    except ArrakisError as error:
        log.warning("settings that are not valid change nothing", reason=error.message)
    else:
        surroundings.config = reload.config
        surroundings.quotas.limits = reload.config.limits
        surroundings.admission.change(reload.config.limits)
        configure_logs(reload.config.log_format, reload.config.log_level)
        log.info("settings were read again", changed=reload.changed)
        if reload.needs_restart:
            log.warning("settings need a restart to change", names=reload.needs_restart)
    tell(READY=1)


def take_over(current: Config, wanted: Config) -> Reload:
    """Take from the wanted settings what can change now; the rest stays as it is."""
    changed: dict[str, Any] = {}
    needs_restart: list[str] = []
    for name, value in _flat(wanted).items():
        if value == _flat(current)[name]:
            continue
        if _is_changeable(current, name):
            changed[name] = value
        else:
            needs_restart.append(name)
    config = current
    for name in changed:
        table, _, key = name.rpartition(".")
        if table:
            value = evolve(getattr(config, table), **{key: getattr(getattr(wanted, table), key)})
            config = evolve(config, **{table: value})
        else:
            config = evolve(config, **{key: getattr(wanted, key)})
    return Reload(config, changed, needs_restart)


def _is_changeable(current: Config, name: str) -> bool:
    # A network of mode "user" is told at its start what all machines may reach, and has no limit.
    is_fixed = name in ("network.egress", "network.mbit") and current.network.mode == "user"
    return name in _CHANGEABLE and not is_fixed


def _flat(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat
