"""Taking the ELF kernel (`vmlinux`) out of the `bzImage` that distributions ship.

Cloud Hypervisor and Firecracker start the ELF file directly, and so does QEMU through its PVH
entry, which saves the guest the work of unpacking itself (slow under emulation).

The layout is the x86 boot protocol (Documentation/x86/boot.rst in Linux): a setup header at a
fixed offset says how many 512-byte sectors of real-mode code come first, and where after them
the compressed payload lies.
"""

import lzma
import struct
import zlib

from arrakis_kernel.errors import KernelFormatError, KernelToolError
from arrakis_kernel.tools import run_tool

_SECTOR = 512
_BOOT_FLAG_AT = 0x1FE
_BOOT_FLAG = 0xAA55
_MAGIC_AT = 0x202
_MAGIC = b"HdrS"
_VERSION_AT = 0x206
_SETUP_SECTORS_AT = 0x1F1
_PAYLOAD_AT = 0x248
_FIRST_VERSION_WITH_PAYLOAD = 0x0208
_HEADER_END = _PAYLOAD_AT + 8

_ELF = b"\x7fELF"
_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\x00"
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_ZSTD = b"\x28\xb5\x2f\xfd"
# The build appends the unpacked size as four bytes, except for gzip, which carries it itself.
_SIZE_SUFFIX = 4


def extract_vmlinux(image: bytes) -> bytes:
    """Return the unpacked ELF kernel of a bzImage.

    Raises KernelFormatError when this is no bzImage or its packing is unknown, and
    KernelToolError when the external unpacker for lz4 or zstd is missing.
    """
    vmlinux = _unpack(_payload(image))
    if not vmlinux.startswith(_ELF):
        raise KernelFormatError("the boot image's payload unpacks to something that is not ELF")
    return vmlinux


def _payload(image: bytes) -> bytes:
    if len(image) < _HEADER_END or image[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        raise KernelFormatError("not a Linux bzImage: the setup header's magic is missing")
    (boot_flag,) = struct.unpack_from("<H", image, _BOOT_FLAG_AT)
    (version,) = struct.unpack_from("<H", image, _VERSION_AT)
    if boot_flag != _BOOT_FLAG or version < _FIRST_VERSION_WITH_PAYLOAD:
        raise KernelFormatError(f"unsupported boot protocol {version >> 8}.{version & 0xFF:02d}")
    # Zero means four, for boot loaders of the previous century.
    setup_sectors = image[_SETUP_SECTORS_AT] or 4
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT)
    start = (setup_sectors + 1) * _SECTOR + offset
    if not length or start + length > len(image):
        raise KernelFormatError("the boot image is cut off: its payload ends beyond the file")
    return image[start : start + length]


def _unpack(payload: bytes) -> bytes:
    if payload.startswith(_ELF):
        return payload
    try:
        if payload.startswith(_GZIP):
            return zlib.decompressobj(wbits=31).decompress(payload)
        if payload.startswith(_XZ):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    except (zlib.error, lzma.LZMAError) as error:
        raise KernelFormatError(f"the boot image's payload is damaged: {error}") from error
    for magic, program in ((_LZ4_LEGACY, "lz4"), (_ZSTD, "zstd")):
        if payload.startswith(magic):
            return _unpack_with(program, payload[:-_SIZE_SUFFIX])
    raise KernelFormatError(f"the boot image is packed in an unknown way ({payload[:6].hex()}...)")


def _unpack_with(program: str, packed: bytes) -> bytes:
    try:
        return run_tool([program, "-d", "-c", "-q"], package=program, stdin=packed)
    except KernelToolError as error:
        raise KernelToolError(f"the kernel is packed with {program}: {error}") from error
