"""The settings in the table ``[limits]``."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge, optional


@frozen
class LimitsConfig:
    """How much there may be of what, all together; 0 is no limit.

    ``vms`` counts those that run, are paused or suspended. ``disk_mib`` is everything in the
    state directory. ``memory_mib`` is what VMs may use, of which ``memory_overcommit`` times as
    much is given out; by default it and ``vcpus`` follow from the host. ``cpu_quota`` is CPUs for
    each vCPU. ``queue`` callers may
    wait for these, for ``queue_timeout`` seconds.
    """

    vms: int = field(default=0, validator=ge(0))
    snapshots: int = field(default=0, validator=ge(0))
    disk_mib: int = field(default=0, validator=ge(0))
    memory_mib: int | None = field(default=None, validator=optional(ge(128)))
    memory_overcommit: float = field(default=4.0, validator=ge(1))
    vcpus: int | None = field(default=None, validator=optional(ge(1)))
    cpu_quota: float = field(default=0.0, validator=ge(0))
    queue: int = field(default=64, validator=ge(0))
    queue_timeout: float = field(default=60.0, validator=ge(0))
