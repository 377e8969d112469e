import gzip
import lzma
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arrakis_kernel import KernelFiles, KernelFormatError, KernelToolError
from arrakis_kernel.bzimage import extract_vmlinux

ELF = b"\x7fELF" + bytes(range(256)) * 40
SIZE = struct.pack("<I", len(ELF))

PHYS32_ENTRY = 18
"""Type of the note "Xen" that holds the entry point of a PVH boot."""


def bzimage(payload: bytes, setup_sectors: int = 3, offset: int = 0x40) -> bytes:
    real_mode_sectors = (setup_sectors or 4) + 1
    image = bytearray(real_mode_sectors * 512 + offset)
    image[0x1F1] = setup_sectors
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x020F)
    struct.pack_into("<II", image, 0x248, offset, len(payload))
    return bytes(image) + payload + b"trailing signature"


def with_program(*command: str) -> Callable[[bytes], bytes]:
    return lambda data: subprocess.run(command, input=data, stdout=-1, check=True).stdout + SIZE


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(bytes, id="unpacked"),
        pytest.param(gzip.compress, id="gzip"),
        pytest.param(lambda data: lzma.compress(data) + SIZE, id="xz"),
        pytest.param(with_program("lz4", "-l", "-c"), id="lz4"),
        pytest.param(with_program("zstd", "-c"), id="zstd"),
    ],
)
def test_payload_of_every_packing_is_unpacked(pack: Callable[[bytes], bytes]) -> None:
    """A payload comes out unchanged however the distribution packed it."""
    assert extract_vmlinux(bzimage(pack(ELF))) == ELF


def test_zero_setup_sectors_mean_four() -> None:
    """The boot protocol's oldest convention is kept."""
    assert extract_vmlinux(bzimage(gzip.compress(ELF), setup_sectors=0)) == ELF


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(b"", "not a Linux bzImage", id="empty"),
        pytest.param(b"\x7fELF" * 1000, "not a Linux bzImage", id="another-format"),
        pytest.param(bzimage(gzip.compress(ELF))[:2200], "cut off", id="cut-off"),
        pytest.param(bzimage(b"\x12\x34" * 50), "unknown way", id="unknown-packing"),
        pytest.param(bzimage(gzip.compress(b"no ELF")), "not ELF", id="no-kernel-inside"),
        pytest.param(bzimage(b"\x1f\x8b" + bytes(50)), "damaged", id="damaged"),
    ],
)
def test_what_is_no_kernel_is_refused(image: bytes, message: str) -> None:
    """Anything but a whole kernel is refused with the reason."""
    with pytest.raises(KernelFormatError, match=message):
        extract_vmlinux(image)


def test_missing_unpacker_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the program for this packing the error says which package holds it."""
    image = bzimage(with_program("lz4", "-l", "-c")(ELF))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelToolError, match="apt-get install lz4"):
        extract_vmlinux(image)


def notes(elf: bytes) -> Iterator[tuple[bytes, int]]:
    """Names and types of the notes of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    for header in range(table, table + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, header)
        position, end = offset, offset + length
        while kind == 4 and position < end:
            name_length, content_length, note = struct.unpack_from("<III", elf, position)
            name = elf[position + 12 : position + 12 + name_length].rstrip(b"\0")
            yield name, note
            position += 12 + -(-name_length // 4) * 4 + -(-content_length // 4) * 4


def test_real_kernel_can_be_started_directly(kernel: KernelFiles) -> None:
    """The prepared vmlinux is a 64-bit x86 ELF file with the entry point of a PVH boot."""
    elf = kernel.vmlinux.read_bytes()
    assert elf[:5] == b"\x7fELF\x02"
    assert struct.unpack_from("<H", elf, 0x12) == (62,)
    assert (b"Xen", PHYS32_ENTRY) in set(notes(elf))
    assert extract_vmlinux(kernel.bzimage.read_bytes()) == elf
