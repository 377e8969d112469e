"""Stored guests as one stream of bytes, and back.

A line that names the format, then one zstd frame: the contents as JSON, after their length and
their SHA-256, then every file that they name, in an order that follows from them. A file is a row
of blocks of data, each after its position and length, and a last one of length 0 at the file's
end; what lies between is zeros.

Nothing in an archive is taken for granted: see `archive_contents`, which says what may be
in it. Here it is read piece by piece, never more than was announced, and never further.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from attrs import asdict

from arrakis_rpc.errors import IntegrityError, InvalidParamsError

from ..host.checksums import BLOCK, data_blocks, file_digest
from .archive_contents import Contents, Part, understood

_MAGIC = b"arrakis-snapshot 1\n"
_HEAD = struct.Struct(">I32s")
_RUN = struct.Struct(">QI")
_LONGEST_CONTENTS = 64 * 2**20
_LARGEST_WINDOW = 8 * 2**20
_LEVEL = 3
_ZEROS = bytes(BLOCK)

Progress = Callable[[int], None]


class _Sink:
    def __init__(self, send: Callable[[bytes], object]) -> None:
        self._send = send

    def write(self, data: bytes) -> int:
        self._send(bytes(data))
        return len(data)


def pack(
    contents: Contents, place: Path, send: Callable[[bytes], object], progress: Progress
) -> None:
    """Send stored guests, whose parts are below a directory. Blocks.

    ``progress`` is told how many bytes of data were sent since it was told last.
    """
    from zstandard import FLUSH_FRAME, ZstdCompressor

    send(_MAGIC)
    text = json.dumps(asdict(contents)).encode()
    compressor = ZstdCompressor(level=_LEVEL, write_checksum=True)
    # Ended by hand and not by a block, which would send more after a piece that failed.
    frame = compressor.stream_writer(_Sink(send), closefd=False)  # type: ignore[arg-type]
    frame.write(_HEAD.pack(len(text), hashlib.sha256(text).digest()) + text)
    for part in contents.parts():
        with closing(data_blocks(place / contents.path(part))) as blocks:
            for position, data in blocks:
                frame.write(_RUN.pack(position, len(data)))
                frame.write(data)
                progress(len(data))
        frame.write(_RUN.pack(part.file.size, 0))
    frame.flush(FLUSH_FRAME)


class Unpacker:
    """Reads an archive; ``receive`` gives the next bytes of it, and none after the last."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._received = b""
        self._ended = False
        self._receive = receive
        self._frame: Any = None

    def read(self, most: int = -1) -> bytes:
        """Give what comes next as it is, at most so many bytes of it; the decompressor asks."""
        if not self._received and not self._ended:
            self._received = self._receive()
            self._ended = not self._received
        size = len(self._received) if most < 0 else most
        piece, self._received = self._received[:size], self._received[size:]
        return piece

    def contents(self) -> Contents:
        """Read what there is. Raises `InvalidParamsError` if it is nothing that was exported."""
        from zstandard import ZstdDecompressor

        magic = b""
        while len(magic) < len(_MAGIC) and (piece := self.read(len(_MAGIC) - len(magic))):
            magic += piece
        if magic != _MAGIC:
            raise InvalidParamsError(
                "this is no exported snapshot, or one of another version",
                hint="'arrakis snapshot export' makes them",
            )
        decompressor = ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._frame = decompressor.stream_reader(self)  # type: ignore[arg-type]
        length, digest = _HEAD.unpack(self._exactly(_HEAD.size))
        if length > _LONGEST_CONTENTS:
            raise _damaged("its contents are too long")
        text = self._exactly(length)
        if hashlib.sha256(text).digest() != digest:
            raise _damaged("the checksum of its contents differs")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged("its contents are no JSON") from error
        return understood(content)

    def _exactly(self, length: int) -> bytes:
        from zstandard import ZstdError

        data = bytearray()
        while len(data) < length:
            try:
                piece = self._frame.read(length - len(data))
            except ZstdError as error:
                raise _damaged(str(error)) from error
            if not piece:
                raise _damaged("it ends too early")
            data += piece
        return bytes(data)

    def store(self, part: Part, target: Path) -> None:
        """Write the next file, and check that it is what its checksum says."""
        with target.open("xb") as file:
            self._copy(part, file)
        if file_digest(target) != part.file.digest:
            raise _damaged(f"the checksum of {part.name} differs")

    def skip(self, part: Part) -> None:
        """Pass over the next file."""
        self._copy(part, None)

    def _copy(self, part: Part, file: IO[bytes] | None) -> None:
        end = 0
        while True:
            position, length = _RUN.unpack(self._exactly(_RUN.size))
            if position < end or length > BLOCK or position + length > part.file.size:
                raise _damaged(f"the data of {part.name} is not where it can be")
            if length == 0:
                break
            end = position + length
            data = self._exactly(length)
            if file is not None and data != _ZEROS[:length]:
                os.pwrite(file.fileno(), data, position)
        if position != part.file.size:
            raise _damaged(f"{part.name} has another size")
        if file is not None:
            file.truncate(part.file.size)

    def end(self) -> None:
        """Check that no more is in the frame. All of it was checked; what follows is ignored."""
        from zstandard import ZstdError

        try:
            rest = self._frame.read(1)
        except ZstdError as error:
            raise _damaged(str(error)) from error
        if rest:
            raise _damaged("something follows its last file")


def _damaged(reason: str) -> IntegrityError:
    return IntegrityError(
        f"the archive is damaged: {reason}", hint="copy it once more, or export it again"
    )
