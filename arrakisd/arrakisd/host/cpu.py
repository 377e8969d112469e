"""What a guest that uses the processor itself has seen of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SEEN = ("vendor_id", "cpu family", "model", "stepping", "flags")


def cpu_features() -> str:
    """Name the host's processor, and what it can do, in a form that can be compared. Blocks."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    seen = {key.strip(): " ".join(sorted(value.split())) for key, value in fields.items()}
    values = [seen.get(key, "") for key in _SEEN]
    flags = hashlib.sha256(values.pop().encode()).hexdigest()[:16]
    return " ".join([*values, flags])
