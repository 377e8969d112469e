"""Which part of a file a request asks for (RFC 9110, section 14)."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from werkzeug.http import parse_range_header

from .guards import RefusedError


@frozen
class Part:
    """A part of a file: ``length`` is None where it is not known."""

    status: int
    offset: int
    length: int | None
    headers: dict[str, str] = field(factory=dict)


def chosen_part(headers: Mapping[str, str], size: int, etag: str) -> Part:
    """Choose all of a file, or the one range of it that was asked for; raise `RefusedError`.

    Of several ranges all of it is given, which is always right. A file without a size may be
    one of those that the kernel makes up while they are read.
    """
    whole = Part(200, 0, size, {"Content-Length": str(size)}) if size else Part(200, 0, None)
    asked = parse_range_header(headers.get("range"))
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return whole
    if headers.get("if-range", etag) != etag or not size:
        return whole
    found = asked.range_for_length(size)
    if found is None:
        raise RefusedError(416, "there is no such range", (("Content-Range", f"bytes */{size}"),))
    begin, end = found
    placed = {
        "Content-Length": str(end - begin),
        "Content-Range": f"bytes {begin}-{end - 1}/{size}",
    }
    return Part(206, begin, end - begin, placed)
