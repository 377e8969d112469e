"""Which kernel the guests run, and how it and its initramfs come to this machine.

Everything here runs at set-up time, synchronously; the daemon only calls `find_kernel`.
"""

from arrakis_kernel.cache import cache_directory
from arrakis_kernel.errors import (
    KernelError,
    KernelFormatError,
    KernelStoreError,
    KernelToolError,
)
from arrakis_kernel.small import find_small_kernel
from arrakis_kernel.store import KernelFiles, ensure_kernel, find_kernel, load_kernel

__all__ = [
    "KernelError",
    "KernelFiles",
    "KernelFormatError",
    "KernelStoreError",
    "KernelToolError",
    "cache_directory",
    "ensure_kernel",
    "find_kernel",
    "find_small_kernel",
    "load_kernel",
]
