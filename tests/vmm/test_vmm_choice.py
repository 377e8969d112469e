"""Which hypervisor machines run under: the usual one, and one that is asked for by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from vmm_harness import Fake, make_kernel

from arrakis_rpc.errors import NotFoundError, UnsupportedError
from arrakisd.host.vmm import kvm_probe
from arrakisd.host.vmm.hypervisors import choose_hypervisor, open_hypervisors
from arrakisd.settings.config import Config
from arrakisd.settings.network import NetworkConfig


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    """Both fakes; a device that passes for KVM's; and a cache with what passes for a kernel."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm_probe, "DEVICE", device)
    make_kernel(tmp_path / "cache")
    return {kind: Fake(kind, tmp_path / kind) for kind in ("cloud-hypervisor", "firecracker")}


def settings(fakes: dict[str, Fake], tmp_path: Path, mode: str = "bridge", **more: str) -> Config:
    """Give settings with both fakes; all that is not the test's is QEMU, emulating."""
    return Config(
        cache_dir=str(tmp_path / "cache"),
        cloud_hypervisor_binary=str(fakes["cloud-hypervisor"].binary),
        firecracker_binary=str(fakes["firecracker"].binary),
        network=NetworkConfig(mode=mode),
        vmm_user="nobody-else",  # the fakes' Python is often for the user of the tests alone
        **more,
    )


async def test_auto(fakes: dict[str, Fake], tmp_path: Path) -> None:
    """Of itself the daemon takes cloud-hypervisor where a guest boots under KVM, else QEMU."""
    fakes["cloud-hypervisor"].set(probe="boots")
    chosen = await choose_hypervisor(settings(fakes, tmp_path))
    assert str(chosen) == "cloud-hypervisor 52.0 (kvm)"
    (tmp_path / "cache" / "kvm-cloud-hypervisor.json").unlink()
    fakes["cloud-hypervisor"].set(probe="dies")
    assert (await choose_hypervisor(settings(fakes, tmp_path))).name == "qemu"


@pytest.mark.parametrize(
    "changes", [{"mode": "user"}, {"accelerator": "tcg"}], ids=["network", "emulation"]
)
async def test_auto_where_it_does_not_fit(
    fakes: dict[str, Fake], tmp_path: Path, changes: dict[str, str]
) -> None:
    """QEMU is taken where the settings are such that no other can be used."""
    fakes["cloud-hypervisor"].set(probe="boots")
    assert (await choose_hypervisor(settings(fakes, tmp_path, **changes))).name == "qemu"


async def test_auto_without_any(tmp_path: Path) -> None:
    """Where none can be used the error says why of each, and how QEMU is installed."""
    missing = dict.fromkeys(
        ("qemu_binary", "cloud_hypervisor_binary", "firecracker_binary"), "no-such-vmm"
    )
    with pytest.raises(UnsupportedError, match=r"(no-such-vmm is not installed.*){3}") as caught:
        await choose_hypervisor(Config(**missing))
    assert "apt-get install" in (caught.value.hint or "")


async def test_by_name(fakes: dict[str, Fake], tmp_path: Path) -> None:
    """Another than the usual one is tried when it is asked for, and known from then on."""
    hypervisors = await open_hypervisors(settings(fakes, tmp_path, vmm="qemu", mode="none"))
    assert await hypervisors.get(None) is await hypervisors.get("auto") is hypervisors.usual
    assert not hypervisors.has_made("firecracker", "1.16.2", "kvm")
    with pytest.raises(UnsupportedError, match="has not been tried"):
        hypervisors.made("firecracker")
    fakes["firecracker"].set(probe="boots")
    found = await hypervisors.get("firecracker")
    assert str(found) == "firecracker 1.16.2 (kvm)"
    assert await hypervisors.get("firecracker") is hypervisors.made("firecracker") is found
    assert hypervisors.has_made("firecracker", "1.16.2", "kvm")
    assert not hypervisors.has_made("firecracker", "1.15.0", "kvm")
    with pytest.raises(NotFoundError, match="no VMM 'bochs'"):
        await hypervisors.get("bochs")
