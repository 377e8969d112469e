"""As much of a guest's output as a model can use, in bounded memory."""

from __future__ import annotations

import base64
import codecs


class Excerpt:
    """The beginning and the end of a stream, which together are at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self.total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._half:
            self._forget()

    @property
    def omitted(self) -> int:
        """How many bytes of the middle are left out."""
        self._forget()
        return self.total - len(self._head) - len(self._tail)

    @property
    def text(self) -> str:
        """The excerpt, with a note where something is left out."""
        if not self.omitted:
            return (self._head + self._tail).decode(errors="replace")
        note = (
            f"\n[... {self.omitted} of {self.total} bytes left out here. To see them, write the "
            "output to a file and look at parts of it ...]\n"
        )
        head, tail = (part.decode(errors="replace") for part in (self._head, self._tail))
        return head + note + tail

    def _forget(self) -> None:
        del self._tail[: max(0, len(self._tail) - self._half)]


def as_text(data: bytes, *, is_cut: bool) -> tuple[str, str, int]:
    """Give bytes as text, the encoding (``utf-8`` or ``base64``), and how many bytes that is.

    Where ``is_cut`` the last character may be incomplete: it is then left out.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data, final=not is_cut)
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), "base64", len(data)
    return text, "utf-8", len(data) - len(decoder.getstate()[0])
