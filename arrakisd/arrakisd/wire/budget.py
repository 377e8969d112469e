"""How much memory a client can make the daemon hold, and what counts."""

from __future__ import annotations

import sys
from itertools import chain

from arrakis_rpc.errors import ExhaustedError


class Budget:
    """So many bytes, of which what is held takes its part for as long as it is held."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    def take(self, size: int) -> None:
        """Hold so much more; raise `ExhaustedError`, and hold nothing more, if it is too much."""
        if self._held + size > self._most:
            raise ExhaustedError(
                f"the calls on this connection may hold {self._held} of {self._most} bytes, "
                f"and {size} more do not fit",
                hint="wait for some of them, read their output, or open another connection",
            )
        self._held += size

    def give_back(self, size: int) -> None:
        """Hold so much less."""
        self._held -= size


def memory_of(value: object) -> int:
    """How many bytes a decoded message takes, much more than on the wire when it is all small."""
    size, level = 0, [value]
    while level:  # level by level, since a message may have a hundred thousand values
        size += sum(map(sys.getsizeof, level))
        maps = [one for one in level if type(one) is dict]
        lists = [one for one in level if type(one) is list]
        keys_and_items = (part for one in maps for part in (one, one.values()))
        level = list(chain.from_iterable(chain(keys_and_items, lists)))
    return size
