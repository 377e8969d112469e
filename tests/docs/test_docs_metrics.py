"""The table of metrics agrees with the registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_pages import rows

from arrakis_rpc.errors import NotFoundError
from arrakisd.logs import configure as logs
from arrakisd.machines.admission import Admission
from arrakisd.settings.limits import LimitsConfig
from arrakisd.settings.paths import StatePaths
from arrakisd.storage.store import Store
from arrakisd.upkeep.metrics import Metrics


def documented() -> dict[str, tuple[str, set[str]]]:
    """Give type and labels of each metric in the table."""
    return {
        name: (kind, {label.strip(" `") for label in labels.split(",")} - {""})
        for name, (kind, labels, _) in rows("docs/metrics.md", "Metrics").items()
    }


def registered(tmp_path: Path) -> dict[str, tuple[str, set[str]]]:
    """Give the same of the metrics of a daemon in which each has a sample."""
    metrics = Metrics(Store(StatePaths(tmp_path), None), list, int, int, int)
    metrics.watch_admission(Admission(LimitsConfig()), int)
    with pytest.raises(NotFoundError), metrics.measured("vm.info", {}):
        raise NotFoundError("no")
    found = {}
    for family in metrics.registry.collect():
        name, kind = family.name, family.type
        if kind in ("counter", "info"):
            name += "_total" if kind == "counter" else "_info"
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = ("gauge" if kind == "info" else kind, labels)
    return found


def test_every_metric_is_documented_with_its_type_and_labels(tmp_path: Path) -> None:
    """The table in docs/metrics.md has those of the registry, but for the library's own."""
    own = {name: one for name, one in registered(tmp_path).items() if name.startswith("arrakis_")}
    others = registered(tmp_path).keys() - own.keys()
    assert documented() == own
    assert all(name.startswith("process_") for name in others)


def test_the_secret_names_are_documented() -> None:
    """What the page says is not logged is what the daemon redacts."""
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    secrets = page[page.index("**Secrets.**") :]
    assert all(f"`{word}`" in secrets for word in logs._SECRET)
