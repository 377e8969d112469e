"""The settings in the table ``[snapshots]``."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge


@frozen
class SnapshotsConfig:
    """Which snapshots are kept that nobody deletes; 0 is no limit.

    The last ``keep_last`` of each VM, and all of them together up to ``max_mib``.
    """

    keep_last: int = field(default=0, validator=ge(0))
    max_mib: int = field(default=0, validator=ge(0))
