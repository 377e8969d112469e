"""Typed objects of the protocol, and wire values that are wrong for them in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
from hypothesis import reject
from hypothesis import strategies as st
from rpc_strategies import texts, values

from arrakis_rpc import daemon_api
from arrakis_rpc.operations import DAEMON, GUEST

OPERATIONS = [*DAEMON.values(), *GUEST.values()]
PARAMS = list(dict.fromkeys(operation.params for operation in OPERATIONS))
RESULTS = list(dict.fromkeys(operation.result for operation in OPERATIONS))
KINDS = list(dict.fromkeys([*PARAMS, *RESULTS, daemon_api.Event, daemon_api.Progress]))


def name_of(kind: Any) -> str:
    """A name for the id of a test."""
    return f"{kind.__name__}[{kind.__args__[0].__name__}]" if get_args(kind) else kind.__name__


@cache
def fields_of(kind: Any) -> dict[str, Any]:
    """The types of a class's fields, with type variables put in."""
    origin = get_origin(kind) or kind
    variables = dict(zip(getattr(origin, "__parameters__", ()), get_args(kind), strict=True))
    hints = get_type_hints(origin)
    return {
        attribute.name: variables.get(hint, hint) if isinstance(hint, TypeVar) else hint
        for attribute in attrs.fields(origin)
        for hint in [hints[attribute.name]]
    }


def is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def without_none(kind: Any) -> Any:
    (inner,) = [arg for arg in get_args(kind) if arg is not NoneType]
    return inner


def fits(value: Any, kind: Any) -> bool:
    """Whether a wire value has the shape of a type; what validators say is left out."""
    if kind is Any:
        return True
    if is_optional(kind):
        return value is None or fits(value, without_none(kind))
    if kind is float:
        return type(value) in (int, float)
    match get_origin(kind), get_args(kind):
        case (o, choices) if o is Literal:
            return any(type(value) is type(choice) and value == choice for choice in choices)
        case (o, (element,)) if o is list:
            return type(value) is list and all(fits(item, element) for item in value)
        case (o, (_, element)) if o is dict:
            return type(value) is dict and all(fits(item, element) for item in value.values())
    if attrs.has(kind):
        hints = fields_of(kind)
        return (
            type(value) is dict
            and value.keys() == hints.keys()
            and all(fits(value[name], hint) for name, hint in hints.items())
        )
    return type(value) is kind


# Values good for one field or another, each sort with an example: a field's validator
# decides by the example whether it may be offered that sort at all.
_SCALARS: dict[Any, list[tuple[Any, st.SearchStrategy[Any]]]] = {
    bool: [(True, st.booleans())],
    int: [
        (9, st.integers(1, 60)),
        (999, st.integers(200, 10_000)),
        (-(2**60), st.integers(-(2**63), 2**64 - 1)),
    ],
    float: [
        (9.5, st.floats(1, 1e9)),
        (-9.5, st.floats(allow_nan=False, allow_infinity=False)),
    ],
    str: [
        ("name", st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)),
        ("0" * 32, st.text("0123456789abcdef", min_size=32, max_size=32)),
        ("a.example:443", st.from_regex(r"[a-z]{1,9}\.example(:[1-9]\d{0,3})?", fullmatch=True)),
        ("any \n\udcff", texts),
    ],
    bytes: [
        (bytes(32), st.binary(min_size=32, max_size=32)),
        (b"any", st.binary(max_size=20)),
    ],
}

Accepts = Callable[[Any], bool]


def _acceptance(attribute: Any) -> Accepts:
    def accepts(value: Any) -> bool:
        try:
            if attribute.validator is not None:
                attribute.validator(None, attribute, value)
        except ValueError:
            return False
        return True

    return accepts


def sample(kind: Any) -> Any:
    """One valid object of a class: nothing in it is None, nothing is empty, where possible."""
    origin = get_origin(kind) or kind
    members = {
        attribute.name: _sample(fields_of(kind)[attribute.name], _acceptance(attribute))
        for attribute in attrs.fields(origin)
    }
    if {"argv", "shell"} <= members.keys():
        members["shell"] = None
    return origin(**members)


def _sample(kind: Any, accepts: Accepts) -> Any:
    if kind is Any:
        return "anything"
    if is_optional(kind):
        return _sample(without_none(kind), accepts)
    if get_origin(kind) is Literal:
        return get_args(kind)[-1]
    if get_origin(kind) is list:
        return [_sample(get_args(kind)[0], lambda value: accepts([value]))]
    if get_origin(kind) is dict:
        return {"KEY": _sample(get_args(kind)[1], lambda value: accepts({"KEY": value}))}
    if attrs.has(kind):
        return sample(kind)
    return next(example for example, _ in _SCALARS[kind] if accepts(example))


@cache
def instances(kind: Any) -> st.SearchStrategy[Any]:
    """Valid objects of a class."""
    origin = get_origin(kind) or kind
    members = {
        attribute.name: _instances(fields_of(kind)[attribute.name], _acceptance(attribute))
        for attribute in attrs.fields(origin)
    }

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        drawn = {name: draw(strategy) for name, strategy in members.items()}
        if {"argv", "shell"} <= drawn.keys():
            one, other = draw(st.permutations(["argv", "shell"]))
            drawn[one] = None
            drawn[other] = drawn[other] or {"argv": ["true"], "shell": "true"}[other]
        if {"mode", "allow"} <= drawn.keys():
            without = draw(st.sampled_from(["none", "internet"]))
            drawn["mode"] = "allow" if drawn["allow"] else without
        try:
            return origin(**drawn)
        except ValueError:
            reject()

    return build()


def _instances(kind: Any, accepts: Accepts) -> st.SearchStrategy[Any]:
    if kind is Any:
        return values
    if is_optional(kind):
        return st.none() | _instances(without_none(kind), accepts)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is list:
        element = _instances(get_args(kind)[0], lambda value: accepts([value]))
        return st.lists(element, max_size=2).filter(accepts)
    if get_origin(kind) is dict:
        element = _instances(get_args(kind)[1], lambda value: accepts({"": value}))
        return st.dictionaries(texts, element, max_size=2).filter(accepts)
    if attrs.has(kind):
        return instances(kind)
    sorts = [strategy for example, strategy in _SCALARS[kind] if accepts(example)]
    return st.one_of(sorts).filter(accepts)


# One value of each sort, and near misses.
_STRANGERS: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 0.5, "", "1", "true", b"", b"1",
    [], [1], ["1"], [None], [[]], ["name", "value"], {}, {"name": "1"}, {"a": {}},
]  # fmt: skip


def spoiled(wire: Any, kind: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each way to put a value of a wrong type into one place, with the path of that place."""
    for stranger in _STRANGERS:
        if not _may_be(stranger, kind):
            yield path, stranger
    inner = without_none(kind) if is_optional(kind) else kind
    if wire is None:
        return
    places: dict[Any, tuple[str, Any]] = {}
    if get_origin(inner) is list:
        places = {i: (f"{path}[{i}]", get_args(inner)[0]) for i in range(len(wire))}
    elif get_origin(inner) is dict:
        places = {key: (f"{path}[{key!r}]", get_args(inner)[1]) for key in wire}
    elif attrs.has(inner):
        places = {
            name: (f"{path}.{name}" if path else name, hint)
            for name, hint in fields_of(inner).items()
        }
    for place, (inner_path, hint) in places.items():
        for where, worse in spoiled(wire[place], hint, inner_path):
            copy = list(wire) if isinstance(wire, list) else dict(wire)
            copy[place] = worse
            yield where, copy


def _may_be(value: Any, kind: Any) -> bool:
    """Whether a value is right for a type, as far as its outermost layer says."""
    inner = without_none(kind) if is_optional(kind) else kind
    if inner is not kind and value is None:
        return True
    if attrs.has(inner) or get_origin(inner) is dict:
        return type(value) is dict
    if get_origin(inner) is list:
        return type(value) is list
    return fits(value, inner)


def maps_in(wire: Any, kind: Any, path: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Each map that stands for a class: its path, its class, and the map itself."""
    inner = without_none(kind) if is_optional(kind) else kind
    if wire is None:
        return
    if get_origin(inner) is list:
        for index, item in enumerate(wire):
            yield from maps_in(item, get_args(inner)[0], f"{path}[{index}]")
    elif attrs.has(inner):
        yield path, inner, wire
        for name, hint in fields_of(inner).items():
            yield from maps_in(wire[name], hint, f"{path}.{name}" if path else name)
