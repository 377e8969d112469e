"""What the parts of a daemon that make and keep VMs have in common."""

from __future__ import annotations

from attrs import Factory, define, field

from .admission import Admission
from .config import Config
from .groups import VmmGroups
from .host.net.interface import HostNetwork
from .merging import Merger
from .paths import StatePaths
from .quotas import Quotas
from .store import Store


@define
class Surroundings:
    """What every machine of this daemon works with. Another ``config`` is for those to come."""

    config: Config
    paths: StatePaths
    store: Store
    network: HostNetwork
    merger: Merger
    quotas: Quotas = field(
        default=Factory(lambda own: Quotas(own.config.limits, own.store, own.paths), True)
    )
    admission: Admission = field(default=Factory(lambda own: Admission(own.config.limits), True))
    groups: VmmGroups = field(default=Factory(lambda own: VmmGroups.none(own.config), True))
