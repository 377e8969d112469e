"""Types on the keyboard of an X server, what its keys mean and what they do not."""

from __future__ import annotations

import time

import keysyms
from x11 import KEY_PRESS, KEY_RELEASE, LOCK_MASK, Display

# From here on come keys for the volume and the like, and many that no keyboard has.
_FIRST_LENT = 109
_XF86 = 0x1008
_LATIN_1 = range(0xA0, 0x100)
_UNICODE = 0x01
# So long a key keeps its meaning for those who were told of it, when all are in use.
_SETTLED_SECONDS = 5.0


class Keyboard:
    """The keys, of which those that nobody needs are given a meaning that somebody does.

    A program that is told of a key asks only then what it means. So a key keeps its new meaning,
    for the next texts, too, until all are in use: some two hundred characters.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        # Of the keyboards that the server has the last one in use counts: it is to be this one.
        display.fake(KEY_RELEASE, display.last_key)
        display.flush()
        self._places: dict[int, tuple[int, bool]] = {}
        self._lent: dict[int, list[int]] = {}
        self._free: list[int] = []  # keys with room for a meaning, or for one more with Shift
        for key, row in display.keys().items():
            self._learn(key, row)

    def type(self, meant: list[int]) -> None:
        """Type what keysyms stand for, one after the other."""
        with_lock = self._display.modifiers() & LOCK_MASK
        if with_lock:
            self.press([keysyms.CAPS_LOCK])
        rest = meant
        while rest:
            count = self._provide(rest)
            for keysym in rest[:count]:
                self._strike([keysym])
            self._display.flush()
            rest = rest[count:]
        if with_lock:
            self.press([keysyms.CAPS_LOCK])

    def press(self, meant: list[int]) -> None:
        """Press keys in this order, and let go of them in the other one."""
        while self._provide(meant) < len(meant):
            self._take_back()
        self._strike(meant)
        self._display.flush()

    def _strike(self, meant: list[int]) -> None:
        keys = []
        for keysym in meant:
            key, is_shifted = self._places[keysym]
            keys += [self._places[keysyms.SHIFT][0], key] if is_shifted else [key]
        keys = [*dict.fromkeys(keys)]
        for key in keys:
            self._display.fake(KEY_PRESS, key)
        for key in reversed(keys):
            self._display.fake(KEY_RELEASE, key)

    def _learn(self, key: int, row: tuple[int, ...]) -> None:
        alone, shifted = row[:2]
        if key >= _FIRST_LENT:
            if not any(row) or alone >> 16 == _XF86:
                self._lend(key, [])
                return
            if _is_lent(alone) and _is_lent(shifted):
                self._lend(key, [*dict.fromkeys((alone, shifted))])
                return
        if alone:
            self._places.setdefault(alone, (key, False))
        if shifted:
            self._places.setdefault(shifted, (key, True))

    def _lend(self, key: int, meanings: list[int]) -> None:
        self._lent[key] = meanings
        for place, keysym in enumerate(meanings):
            self._places.setdefault(keysym, (key, place > 0))
        if len(meanings) < 2:
            self._free.append(key)

    def _provide(self, meant: list[int]) -> int:
        """Find a key for each keysym; give how far that went before all keys were in use."""
        for count, keysym in enumerate(meant):
            if keysym in self._places:
                continue
            if not self._free:
                if count:
                    return count
                self._take_back()
            key = self._free.pop(0)
            self._lend(key, [*self._lent[key], keysym])
            self._display.assign(key, self._lent[key][0], keysym)
        return len(meant)

    def _take_back(self) -> None:
        time.sleep(_SETTLED_SECONDS)
        for key, meanings in self._lent.items():
            for keysym in meanings:
                del self._places[keysym]
            self._lent[key] = []
        self._free = [*self._lent]


def _is_lent(keysym: int) -> bool:
    return keysym in _LATIN_1 or keysym >> 24 == _UNICODE
