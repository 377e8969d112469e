import subprocess

import pytest

from arrakis_kernel import (
    KernelFiles,
    KernelFormatError,
    KernelToolError,
    cache_directory,
    find_small_kernel,
)
from arrakis_kernel.small import check_configuration, config_fragment, ensure_small_kernel

NEEDED = (
    *("VIRTIO_PCI", "VIRTIO_MMIO", "VIRTIO_BLK", "VIRTIO_NET", "VIRTIO_CONSOLE", "VIRTIO_VSOCKETS"),
    *("HW_RANDOM_VIRTIO", "VMGENID", "EROFS_FS", "OVERLAY_FS", "EXT4_FS", "PVH"),
)


@pytest.fixture
def small() -> KernelFiles:
    """The small kernel, where somebody has built it."""
    kernel = find_small_kernel(cache_directory())
    if kernel is None:
        pytest.skip("there is no small kernel here: python -m arrakis_kernel small builds it")
    return kernel


def test_what_hypervisors_and_disks_need_is_built_in() -> None:
    """The configuration asks for all that guests load as modules otherwise, and for no modules."""
    lines = config_fragment().splitlines()
    assert not {f"CONFIG_{name}=y" for name in NEEDED} - set(lines)
    assert "# CONFIG_MODULES is not set" in lines
    assert not [line for line in lines if line.endswith("=m")]
    names = [line.split("=")[0] for line in lines if line.startswith("CONFIG_")]
    assert len(names) == len(set(names))


def test_settings_that_did_not_take_are_named() -> None:
    """A configuration without something that was asked for, or with what was not, is refused."""
    wanted = "# A comment\nCONFIG_A=y\nCONFIG_B=64\n# CONFIG_C is not set\n"
    check_configuration(wanted, "CONFIG_A=y\nCONFIG_B=64\nCONFIG_OTHER=y\n")
    check_configuration(wanted, "CONFIG_A=y\nCONFIG_B=64\n# CONFIG_C is not set\n")
    with pytest.raises(KernelFormatError, match="take CONFIG_A=y, CONFIG_B=64, CONFIG_C=n: "):
        check_configuration(wanted, "# CONFIG_A is not set\nCONFIG_B=32\nCONFIG_C=y\n")


def test_a_build_without_its_tools_says_which(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where no compiler is installed the error says how to install one, and nothing is left."""
    monkeypatch.setattr("arrakis_kernel.small._PROGRAMS", ("no-such-compiler",))
    cache = tmp_path_factory.mktemp("cache")
    with pytest.raises(KernelToolError, match=r"no-such-compiler; try: apt-get install .* gcc"):
        ensure_small_kernel(cache, print)
    assert [path.name for path in (cache / "kernels").iterdir()] == [".lock"]
    assert find_small_kernel(cache) is None


@pytest.mark.vm
@pytest.mark.parametrize("image", ["vmlinux", "bzimage"])
def test_it_boots(small: KernelFiles, image: str) -> None:
    """The small kernel boots into the initramfs with either boot image, and finds a disk."""
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256M"),
            *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
            *("-drive", f"if=none,id=root,file={small.initramfs},format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-kernel", str(getattr(small, image)), "-initrd", str(small.initramfs)),
            *("-append", "console=ttyS0 panic=-1 ignore_loglevel reboot=t arrakis.vsock=5000"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=600,
        check=True,
    )
    console = done.stdout.decode(errors="replace")
    assert "NET: Registered PF_VSOCK protocol family" in console
    assert "arrakis-init: cannot mount the image /dev/vda (erofs)" in console
