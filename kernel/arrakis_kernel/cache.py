"""Where the machine keeps what is expensive to make: kernels, base images, downloads."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return the machine-wide cache directory, which need not exist yet.

    `ARRAKIS_CACHE` wins; else `/var/cache/arrakis` for root (shared by every user of the
    machine) and `~/.cache/arrakis` for anybody else.
    """
    if configured := os.environ.get("ARRAKIS_CACHE"):
        return Path(configured).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/arrakis")
    return Path.home() / ".cache" / "arrakis"
