"""Which number X has for a character, or for the name of a key."""

from __future__ import annotations

SHIFT, CONTROL, ALT, SUPER = 0xFFE1, 0xFFE3, 0xFFE9, 0xFFEB
CAPS_LOCK = 0xFFE5

_FIRST_UNICODE = 0x100
_UNICODE = 0x01000000

# Small, without "_" and "-".
_NAMES = {
    "alt": ALT,
    "backspace": 0xFF08,
    "capslock": CAPS_LOCK,
    "cmd": SUPER,
    "command": SUPER,
    "control": CONTROL,
    "ctrl": CONTROL,
    "del": 0xFFFF,
    "delete": 0xFFFF,
    "down": 0xFF54,
    "end": 0xFF57,
    "enter": 0xFF0D,
    "esc": 0xFF1B,
    "escape": 0xFF1B,
    "home": 0xFF50,
    "ins": 0xFF63,
    "insert": 0xFF63,
    "left": 0xFF51,
    "menu": 0xFF67,
    "meta": SUPER,
    "numlock": 0xFF7F,
    "option": ALT,
    "pagedown": 0xFF56,
    "pageup": 0xFF55,
    "pause": 0xFF13,
    "pgdn": 0xFF56,
    "pgup": 0xFF55,
    "print": 0xFF61,
    "printscreen": 0xFF61,
    "return": 0xFF0D,
    "right": 0xFF53,
    "scrolllock": 0xFF14,
    "shift": SHIFT,
    "space": 0x20,
    "super": SUPER,
    "tab": 0xFF09,
    "up": 0xFF52,
    "win": SUPER,
    "windows": SUPER,
    **{f"f{number}": 0xFFBD + number for number in range(1, 25)},
}

_CONTROLS = {"\n": 0xFF0D, "\r": 0xFF0D, "\t": 0xFF09}


def of_character(character: str) -> int:
    """Give the keysym of a character."""
    number = ord(character)
    return _CONTROLS.get(character, number if number < _FIRST_UNICODE else _UNICODE + number)


def of_name(name: str) -> int:
    """Give the keysym of a key by one of its names, or by its character; 0 if there is none."""
    if len(name) == 1:
        return of_character(name)
    return _NAMES.get(name.lower().replace("_", "").replace("-", "")) or _known_to_x(name)


def _known_to_x(name: str) -> int:
    # Here, since it takes its time, and a few names suffice nearly always.
    import ctypes

    try:
        find = ctypes.CDLL("libX11.so.6").XStringToKeysym
    except OSError:
        return 0
    find.restype = ctypes.c_ulong
    return int(find(name.encode()))
