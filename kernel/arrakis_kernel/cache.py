"""Where the machine keeps what is expensive to make: kernels, base images, downloads."""

import os
from pathlib import Path

_MACHINE_WIDE = Path("/var/cache/arrakis")


def cache_directory() -> Path:
    """Return the machine-wide cache directory, which need not exist yet.

    `ARRAKIS_CACHE` wins; else it is `/var/cache/arrakis` for root, and for anybody else when
    root has filled it. Otherwise others have a `~/.cache/arrakis` of their own.
    """
    if configured := os.environ.get("ARRAKIS_CACHE"):
        return Path(configured).absolute()
    if os.geteuid() == 0 or os.access(_MACHINE_WIDE / "kernels", os.R_OK | os.X_OK):
        return _MACHINE_WIDE
    return Path.home() / ".cache" / "arrakis"
