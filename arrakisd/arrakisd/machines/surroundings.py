"""What the parts of a daemon that make and keep VMs have in common."""

from __future__ import annotations

from attrs import Factory, define, field

from ..host.net.interface import HostNetwork
from ..settings.config import Config
from ..settings.paths import StatePaths
from ..storage.merging import Merger
from ..storage.quotas import Quotas
from ..storage.store import Store
from .admission import Admission
from .groups import VmmGroups


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
