"""What is cloud-hypervisor's alone: its locks on disks, how long it writes, whom it knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs
from vmm_harness import Fake, Rig, ask

from arrakis_rpc.errors import DeadlineError
from arrakisd import deadlines
from arrakisd.host.disks import make_blank_disk
from arrakisd.host.vmm import api_vmm, kvm_probe
from arrakisd.host.vmm.errands import fold_disk
from arrakisd.settings.config import Config
from arrakisd.settings.network import NetworkConfig
from arrakisd.upkeep import doctor

pytestmark = pytest.mark.parametrize("fake", ["cloud-hypervisor"], indirect=True)


@pytest.mark.parametrize(("version", "known"), [("51.2", True), ("53.1", True), ("54.0", False)])
def test_unknown_version(fake: Fake, version: str, known: bool) -> None:
    """A version that nobody has looked at is used, and that is said once."""
    fake.set(version)
    driver = fake.driver()
    with capture_logs() as logs:
        assert driver.version() == driver.version() == version
    assert [entry["version"] for entry in logs] == ([] if known else [version])


@pytest.mark.parametrize(
    ("version", "holes"),
    [
        ("50.0", "CVE-2026-27211, CVE-2026-45782"),
        ("50.2", "CVE-2026-45782"),
        ("51.1", "CVE-2026-45782"),
        ("51.2", None),
        ("52.0", None),
    ],
)
def test_unsafe_version(
    fake: Fake,
    version: str,
    holes: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A version with holes is used, but that is said once, and by the doctor, with a better one."""
    fake.set(version)
    driver = fake.driver()
    with capture_logs() as logs:
        assert driver.version() == driver.version() == version
    if holes is None:
        assert (logs, driver.caveat) == ([], None)
        return
    [entry] = logs
    assert entry["reason"] == driver.caveat
    assert f"({holes}): take 51.2 or newer" in entry["reason"]
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(kvm_probe, "DEVICE", tmp_path / "kvm")
    config = Config(
        cloud_hypervisor_binary=str(fake.binary),
        vmm_user="nobody-else",
        network=NetworkConfig(mode="none"),
    )
    [check] = [one for one in doctor.examine(config, "qemu") if one.name == "cloud-hypervisor"]
    assert check.ok
    assert check.detail == f"{version}; {driver.caveat}"


async def test_locked_disk(rig: Rig) -> None:
    """The disk of a template is kept although the process, which halted, has it locked yet."""
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        assert await ask(vmm, "read 5000") == ["55"]


async def test_disk_with_a_comma(fake: Fake, tmp_path: Path) -> None:
    """A disk is folded whatever its name is."""
    raw, layer = tmp_path / "a,b=c", tmp_path / "layer"
    raw.write_bytes(b"x" * 2**20)
    await make_blank_disk(layer, 1)
    await fold_disk(raw, layer, None)
    assert layer.stat().st_size > 2**20


async def test_slow_snapshot(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write all memory takes as long as it takes, and then more than other things."""
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        rig.fake.set(writes_for="3")
        monkeypatch.setattr(api_vmm, "_ANSWER_DEADLINE", 2.0)
        monkeypatch.setattr(deadlines, "_SLOWEST_DISK", 1)
        await rig.snapshot("one", 1, vmm, template)
    monkeypatch.setattr(deadlines, "_SLOWEST_DISK", 1000)
    async with rig.woken("two", template, f"{1:032x}") as vmm:
        with pytest.RaisesGroup(DeadlineError, flatten_subgroups=True, allow_unwrapped=True):
            await rig.snapshot("two", 1, vmm, template)
