"""What can go wrong while the guest kernel is fetched and prepared.

KernelError
├── KernelFormatError    a boot image is not what it should be, or is packed in an unknown way
├── KernelToolError      an external program is missing, failed, or gave nothing usable
└── KernelStoreError     the cache holds something broken, or cannot be written
"""


class KernelError(Exception):
    """Root of this package's errors."""


class KernelFormatError(KernelError):
    """A file is not a Linux boot image, or is packed in a way this host cannot unpack."""


class KernelToolError(KernelError):
    """An external program is missing or failed; the message says how to get on."""


class KernelStoreError(KernelError):
    """The kernel cache cannot be read or written."""
