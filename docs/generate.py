"""Write ``docs/operations-reference.md`` from the table of operations.

Run it after a change of `arrakis_rpc.operations` or of a type named there::

    .venv/bin/python docs/generate.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import attrs

from arrakis_rpc import daemon_api
from arrakis_rpc.guest_api import Nothing
from arrakis_rpc.operations import DAEMON, GUEST, Operation

TARGET = Path(__file__).with_name("operations-reference.md")

_HEAD = """\
# Operations

<!-- Made by docs/generate.py from rpc/arrakis_rpc/operations.py. Do not edit. -->

Everything that can be called. How calls, streams and errors travel is in
[protocol.md](protocol.md); the SDK wraps all of it, see [sdk.md](sdk.md).

A size is in MiB or bytes as its name says, a duration in seconds, a time a Unix time. A parameter
without a default is required; a result always has all its fields. A field that is not listed is
refused, and so is a value of another type: `"2"` is not a number.

Every operation can fail with `InvalidParamsError`, `CancelledError` or `InternalError`. One that
names states concerns a VM: it fails with `NotFoundError` where there is no such VM, and with
`InvalidStateError` where the VM is in another state. What else it raises is listed with it.
"""

_GUEST_HEAD = """\
## Of the guest agent

The daemon asks these of the agent in a VM, over a channel that clients cannot reach. The
`exec` and `file` operations above are passed on to the agent as they are.
"""

_NAMES: dict[str, tuple[Any, str]] = {
    "a VM's name": (
        daemon_api.vm_name,
        "up to 63 letters, digits, `-`, `_` and `.`; it begins with a letter or digit and has no "
        "two dots in a row",
    ),
    "an id": (
        daemon_api.store_id,
        "up to 63 lower-case letters, digits and `-`; it begins with a letter or digit",
    ),
    "an image": (
        daemon_api.image_name,
        "the name of an image, which is an id, or its digest: 64 hexadecimal digits",
    ),
}


def render() -> str:
    """Give the whole reference."""
    operations = [*DAEMON.values(), *_only_of_agent()]
    parts = [
        _HEAD,
        _index(DAEMON.values()),
        *(_operation(operation) for operation in DAEMON.values()),
        _GUEST_HEAD,
        *(_operation(operation) for operation in _only_of_agent()),
        "## Types\n",
        *(_type(kind) for kind in _types(operations)),
        _names(),
    ]
    return "\n".join(parts)


def _only_of_agent() -> list[Operation]:
    return [operation for method, operation in GUEST.items() if method not in DAEMON]


def _index(operations: Any) -> str:
    rows = [
        f"| [`{one.method}`](#{_anchor(one.method)}) | {one.summary} | {_states(one)} |"
        for one in operations
    ]
    return "\n".join(["| operation | does | legal while the VM is |", "|---|---|---|", *rows, ""])


def _states(operation: Operation) -> str:
    if not operation.states:
        return "-"
    return "in any state" if len(operation.states) == 4 else " or ".join(operation.states)


def _operation(operation: Operation) -> str:
    lines = [f"### {operation.method}\n", f"{operation.summary[0].upper()}{operation.summary[1:]}."]
    facts = [
        ("Parameters", _type_text(operation.params)),
        ("Result", _type_text(operation.result)),
        ("Legal while the VM is", _states(operation) if operation.states else ""),
        ("Raises", ", ".join(f"`{error.__name__}`" for error in operation.raises)),
        ("Streams to the caller", _codes(operation.sends)),
        ("Streams from the caller", _codes(operation.takes)),
        ("Notes from the caller", _codes(operation.notes)),
    ]
    lines += ["", *(f"- {label}: {text}" for label, text in facts if text), ""]
    return "\n".join(lines)


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _types(operations: list[Operation]) -> list[type]:
    """Give every type that operations name, each once, sorted by name."""
    found: dict[str, type] = {}
    waiting = [kind for one in operations for kind in (one.params, one.result)]
    # What no table names, but notifications carry.
    waiting += [daemon_api.Event, daemon_api.Progress]
    while waiting:
        kind = waiting.pop()
        waiting += get_args(kind)
        kind = get_origin(kind) or kind
        is_new = inspect.isclass(kind) and attrs.has(kind) and kind.__name__ not in found
        if is_new and kind is not Nothing:
            found[kind.__name__] = kind
            waiting += get_type_hints(kind).values()
    return [found[name] for name in sorted(found)]


def _type(kind: type) -> str:
    lines = [f"### Type {kind.__name__}\n", _prose(inspect.getdoc(kind) or ""), ""]
    hints = get_type_hints(kind)
    fields = attrs.fields(kind)
    if fields:
        lines += ["| field | type | default | must be |", "|---|---|---|---|"]
    for field in fields:
        rules = ", ".join(_rules(field.validator, field.name)) or "-"
        hint = _type_text(hints[field.name])
        lines.append(f"| `{field.name}` | {hint} | {_default(field)} | {rules} |")
    return "\n".join([*lines, ""] if fields else lines)


def _prose(text: str) -> str:
    """Make Markdown of a docstring: its code spans have two backquotes, its references one."""
    paragraphs = re.sub(r"``?([^`]+)``?", r"`\1`", text).split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


def _default(field: Any) -> str:
    if field.default is attrs.NOTHING:
        return "-"
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
        return "empty"
    if field.default == b"":
        return "empty"
    return "none" if field.default is None else f"`{_literal(field.default, field.name)}`"


def _literal(value: object, field: str = "") -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if field == "mode" and isinstance(value, int):
        return oct(value)
    return f'"{value}"' if isinstance(value, str) else str(value)


def _type_text(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType or NoneType in args:
        return " or ".join(_type_text(one) for one in args)
    if origin is Literal:
        return " or ".join(f"`{_literal(value)}`" for value in args)
    if origin is list:
        return f"list of {_type_text(args[0])}"
    if origin is dict:
        return f"map of {_type_text(args[1])}"
    if args:
        return f"{_type_text(origin)} of {_type_text(args[0])}"
    if inspect.isclass(kind) and attrs.has(kind) and kind is not Nothing:
        return f"[{kind.__name__}](#type-{_anchor(kind.__name__)})"
    words = {NoneType: "none", Nothing: "none", str: "text", Any: "anything"}
    if isinstance(kind, TypeVar):
        return "the agent's parameters"
    return words.get(kind) or kind.__name__


def _rules(validator: Any, field: str) -> Iterator[str]:
    """Put a validator into words; one that is not known says nothing."""
    inner = getattr(validator, "_validators", None) or getattr(validator, "validator", None) or ()
    for one in inner if isinstance(inner, (tuple, list)) else (inner,):
        yield from _rules(one, field)
    if hasattr(validator, "compare_op"):
        yield f"{validator.compare_op} {_literal(validator.bound, field)}"
    for attribute, words in (("min_length", "at least"), ("max_length", "at most")):
        if hasattr(validator, attribute):
            yield f"{words} {getattr(validator, attribute)} long"
    for name, (function, _) in _NAMES.items():
        if validator is function:
            yield f"[{name}](#names)"


def _names() -> str:
    rows = [f"| {name} | {rule} |" for name, (_, rule) in _NAMES.items()]
    return "\n".join(["## Names\n", "| | is |", "|---|---|", *rows, ""])


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "", heading.lower())


if __name__ == "__main__":
    TARGET.write_text(render())
