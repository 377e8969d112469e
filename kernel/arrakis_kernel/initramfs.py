"""Building the initramfs: a static busybox, the needed modules, and `data/init`."""

import lzma
from importlib import resources
from pathlib import Path

from arrakis_kernel import cpio
from arrakis_kernel.errors import KernelFormatError
from arrakis_kernel.tools import run_tool

# In the order of loading, dependencies first: insmod resolves nothing by itself. The guest's
# image holds no modules, so this is all a guest ever has.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "libcrc32c",
    "erofs",
    "overlay",
)

# Loaded where the kernel's command line names a vsock port.
VSOCK_MODULES = ("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport")

# What `data/init` calls; Debian's busybox does not find its applets without links.
APPLETS = ("insmod", "mkdir", "mount", "reboot", "sh", "switch_root", "umount", "usleep")

_DIRECTORIES = ("bin", "dev", "modules", "newroot", "proc", "run", "sys")


def init_script() -> bytes:
    """Return the guest's first program."""
    return resources.files("arrakis_kernel").joinpath("data/init").read_bytes()


def build_initramfs(modules_root: Path, busybox: Path) -> bytes:
    """Return an uncompressed initramfs with the modules found under `lib/modules/<release>`.

    Uncompressed, because under emulation unpacking costs more than reading a few megabytes.
    """
    modules, vsock = (_read_modules(modules_root, names) for names in (MODULES, VSOCK_MODULES))
    return _archive(busybox, modules, vsock)


def build_plain_initramfs(busybox: Path) -> bytes:
    """Return one for a kernel that has everything built in."""
    return _archive(busybox, {}, {})


def _archive(busybox: Path, modules: dict[str, bytes], vsock: dict[str, bytes]) -> bytes:
    return cpio.write_archive(
        [
            *(cpio.directory(name) for name in _DIRECTORIES),
            # The kernel opens the console before init has mounted /dev.
            cpio.character_device("dev/console", 5, 1),
            cpio.regular("bin/busybox", busybox.read_bytes(), executable=True),
            *(cpio.symlink(f"bin/{applet}", "busybox") for applet in APPLETS),
            cpio.regular("init", init_script(), executable=True),
            cpio.regular("modules/order", _order(modules)),
            cpio.regular("modules/vsock-order", _order(vsock)),
            *(
                cpio.regular(f"modules/{name}.ko", data)
                for name, data in {**modules, **vsock}.items()
            ),
        ]
    )


def _read_modules(modules_root: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    found = ((name, _read_module(modules_root, name)) for name in names)
    return {name: module for name, module in found if module is not None}


def _order(modules: dict[str, bytes]) -> bytes:
    return "".join(f"{name}.ko\n" for name in modules).encode()


def _read_module(modules_root: Path, name: str) -> bytes | None:
    """Return a module's content, or None when this kernel has it built in."""
    for path in sorted(modules_root.glob(f"kernel/**/{name}.ko*")):
        match path.suffix:
            case ".ko":
                return path.read_bytes()
            case ".xz":
                return lzma.decompress(path.read_bytes())
            case ".zst":
                return run_tool(["zstd", "-d", "-c", "-q", str(path)], package="zstd")
    built_in = (modules_root / "modules.builtin").read_text().split()
    if any(line.endswith(f"/{name}.ko") for line in built_in):
        return None
    raise KernelFormatError(f"this kernel has no {name!r}, neither as a module nor built in")
