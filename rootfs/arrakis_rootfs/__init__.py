"""Base and user images: how they are described, built and kept."""

from arrakis_rootfs.base_image import BASE, ensure_base
from arrakis_rootfs.buildah import ImageBuildProgress
from arrakis_rootfs.builder import build_image
from arrakis_rootfs.desktop_image import DESKTOP, ensure_desktop
from arrakis_rootfs.errors import (
    CommandError,
    ImageBuildError,
    ImageContentError,
    ImageDamagedError,
    ImageError,
    ImageNameError,
    ImageNotFoundError,
    ImageSpaceError,
    ToolMissingError,
)
from arrakis_rootfs.image import Image, ImageDetails
from arrakis_rootfs.store import ImageStore

__all__ = [
    "BASE",
    "DESKTOP",
    "CommandError",
    "Image",
    "ImageBuildError",
    "ImageBuildProgress",
    "ImageContentError",
    "ImageDamagedError",
    "ImageDetails",
    "ImageError",
    "ImageNameError",
    "ImageNotFoundError",
    "ImageSpaceError",
    "ImageStore",
    "ToolMissingError",
    "build_image",
    "ensure_base",
    "ensure_desktop",
]
