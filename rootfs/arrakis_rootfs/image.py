"""An image and its manifest."""

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import cattrs
from attrs import field, frozen

from arrakis_rootfs.errors import ImageDamagedError, ImageNameError

FORMAT_VERSION = 1

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

Kind = Literal["base", "user"]
T = TypeVar("T")


def is_name(text: str) -> bool:
    """Tell whether a text is a legal image name."""
    return bool(_NAME.fullmatch(text))


def check_name(name: str) -> str:
    """Return the name, or raise ImageNameError when it is none.

    The names are safe as file names, in a Dockerfile's FROM and in a container registry; none of
    them can be taken for a digest.
    """
    if not is_name(name):
        raise ImageNameError(
            f"{name[:80]!r} is no image name: up to 63 lower case letters, digits and dashes,"
            " not beginning with a dash"
        )
    return name


def is_digest(text: str) -> bool:
    """Tell whether a text is the digest of an image."""
    return bool(_DIGEST.fullmatch(text))


@frozen(kw_only=True)
class ImageDetails:
    """How an image came to be, recorded when it is published."""

    kind: Kind
    """"base" when this project's own Dockerfile made it, "user" otherwise."""
    distribution: str
    """What the image's os-release says, as in "debian 12"."""
    python: str
    """The guest's own Python, as in "python3.11"; empty when it has none."""
    parent: str | None = None
    """The name that the last FROM of the Dockerfile gives."""
    parent_digest: str | None = None
    """Digest of the parent, None when it is no image of the store."""
    dockerfile_digest: str
    inputs: str | None = None
    """Digest of everything a stock image was made of: another one is another image."""
    environment: dict[str, str] = field(factory=dict)
    """What the Dockerfile's ENV lines set."""
    memory_mib: int | None = None
    """What a machine needs at least, by the Dockerfile's `LABEL arrakis.memory`."""


@frozen(kw_only=True)
class Manifest:
    """The content of an image's `manifest.json`."""

    format_version: int
    digest: str
    size: int
    created: float
    details: ImageDetails


@frozen(kw_only=True)
class Image:
    """One image of a store."""

    name: str | None
    """None when the image was asked for by digest."""
    digest: str
    """SHA-256 of the file system, in hexadecimal."""
    path: Path
    """The read-only erofs file system that guests share."""
    size: int
    """Bytes of that file."""
    created: float
    """Unix time in seconds."""
    details: ImageDetails


_converter = cattrs.Converter(forbid_extra_keys=True)


def unstructure(value: object) -> Any:
    """Return what JSON can hold of an attrs object."""
    return _converter.unstructure(value)


def structure(data: Any, kind: type[T], path: Path) -> T:
    """Return the object that `data`, read from `path`, describes, or raise ImageDamagedError."""
    try:
        return _converter.structure(data, kind)
    except Exception as error:  # cattrs raises groups of anything
        problems = "; ".join(cattrs.transform_error(error))
        raise ImageDamagedError(f"{path} is damaged: {problems}") from error
