"""The settings in the table ``[pool]``."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge, le


@frozen
class PoolConfig:
    """What is kept ready for callers to come; ``memory_mib`` bounds all of it together.

    ``standby`` VMM processes and ``warm`` guests for each shape, of the ``shapes`` that were
    used last.
    """

    standby: int = field(default=2, validator=[ge(0), le(64)])
    warm: int = field(default=1, validator=[ge(0), le(64)])
    shapes: int = field(default=2, validator=[ge(1), le(64)])
    memory_mib: int = field(default=1024, validator=ge(0))
