"""The settings in the table ``[health]``."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen
from attrs.validators import ge

# Less than this may be too little for one machine more.
LOW_DISK = 2 * 2**30


@frozen
class HealthConfig:
    """How often guests are asked whether they are there, and what becomes of one that is not.

    In seconds. ``interval`` 0 is never. A guest that has sent anything for so long is not asked.
    """

    interval: float = field(default=20.0, validator=ge(0))
    timeout: float = field(default=10.0, validator=ge(0.1))
    on_unresponsive: Literal["leave", "restore", "destroy"] = "leave"
