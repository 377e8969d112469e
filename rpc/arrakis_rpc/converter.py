"""Strict structuring: wire values become typed objects, or an error that names the field.

cattrs converts by default (``"2"`` would become 2, and the text ``"ls"`` a list of two
letters); here a value of a wrong type is refused, and so is a field that the type does not
have. A hostile value costs little: of a bad list or map only the first bad element is
reported, and the report is cut to a readable length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
from cattrs import BaseValidationError, ClassValidationError, Converter, ForbiddenExtraKeysError
from cattrs.errors import IterableValidationError, IterableValidationNote

from .errors import InvalidParamsError

T = TypeVar("T")

_Hook = Callable[[Any, Any], Any]

_REFUSALS = (TypeError, ValueError, BaseValidationError)
_LONGEST_TEXT = 300


def _require(kind: type, value: object) -> None:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")


def _exactly(kind: type) -> _Hook:
    def hook(value: Any, _: Any) -> Any:
        _require(kind, value)
        return value

    return hook


def _number(value: Any, _: Any) -> float:
    if type(value) is not int:
        _require(float, value)
    elif abs(value) > 2**64:
        raise ValueError("number out of range")
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)


def _one_of(kind: Any, _: Converter) -> _Hook:
    choices = get_args(kind)

    def hook(value: Any, _: Any) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError(f"expected one of {', '.join(map(repr, choices))}")
        return value

    return hook


def _list_of(kind: Any, converter: Converter) -> _Hook:
    (element,) = get_args(kind)
    hook = converter.get_structure_hook(element)

    def structure_list(value: Any, _: Any) -> Any:
        _require(list, value)
        return [_within(kind, index, hook, item, element) for index, item in enumerate(value)]

    return structure_list


def _map_of(kind: Any, converter: Converter) -> _Hook:
    _, element = get_args(kind)
    hook = converter.get_structure_hook(element)

    def structure_map(value: Any, _: Any) -> Any:
        _require_map(value)
        return {key: _within(kind, key, hook, item, element) for key, item in value.items()}

    return structure_map


def _fields_of(kind: Any, converter: Converter) -> _Hook:
    hook = converter.gen_structure_attrs_fromdict(kind)

    def structure_fields(value: Any, _: Any) -> Any:
        _require_map(value)
        return hook(value, kind)

    return structure_fields


def _require_map(value: object) -> None:
    _require(dict, value)
    for key in value:  # type: ignore[attr-defined]
        if type(key) is not str:
            raise TypeError(f"expected str as a key, got {type(key).__name__}")


def _within(kind: Any, index: int | str, hook: _Hook, item: object, element: Any) -> Any:
    try:
        return hook(item, element)
    except _REFUSALS as error:
        error.add_note(IterableValidationNote("", index, element))
        raise IterableValidationError("", [error], kind) from None


def make_converter() -> Converter:
    """Make a converter with the strict rules of this protocol."""
    converter = Converter(forbid_extra_keys=True, prefer_attrib_converters=False)
    for kind in (bool, int, str, bytes):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, _number)
    for origin, factory in ((Literal, _one_of), (list, _list_of), (dict, _map_of)):
        converter.register_structure_hook_factory(
            lambda kind, origin=origin: get_origin(kind) is origin, factory
        )
    converter.register_structure_hook_factory(attrs.has, _fields_of)
    converter.register_unstructure_hook(bytes, lambda value: value)
    return converter


_converter = make_converter()


def structure(value: object, kind: type[T]) -> T:
    """Make a ``kind`` of a wire value; raise `InvalidParamsError` naming each bad field."""
    try:
        return _converter.structure(value, kind)
    except _REFUSALS as error:
        raise InvalidParamsError("; ".join(_problems(error, ""))) from error


def unstructure(value: object) -> Any:
    """Give the wire form of a typed object."""
    return _converter.unstructure(value)


def _problems(error: BaseException, path: str) -> Iterator[str]:
    if isinstance(error, ClassValidationError):
        fields, others = error.group_exceptions()
        for inner, field in fields:
            yield from _problems(inner, f"{path}.{field.name}" if path else field.name)
        for inner in others:
            yield from _problems(inner, path)
    elif isinstance(error, IterableValidationError):
        for inner, place in error.group_exceptions()[0]:
            yield from _problems(inner, f"{path}[{_cut(repr(place.index))}]")
    else:
        text = _cut(_explain(error))
        yield f"{path}: {text}" if path else text


def _explain(error: BaseException) -> str:
    match error:
        case KeyError():
            return "required field missing"
        case ForbiddenExtraKeysError():
            return f"extra fields found ({', '.join(sorted(error.extra_fields))})"
        case _:
            return str(error.args[0] if error.args else error)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
