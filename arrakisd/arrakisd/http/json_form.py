"""From the forms of the protocol to those of HTTP and back: names in camelCase, nothing null.

And their schemas, which are made of the same types and their validators.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from arrakis_rpc import daemon_api as api
from arrakis_rpc import desktop_api as desktop
from arrakis_rpc.errors import GuestError, InvalidParamsError
from arrakis_rpc.text import as_unicode

MOST = 2**53
VM_NAME = r"^[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,62}$"

# What validators that are functions mean, in terms of JSON Schema.
_PATTERNS: dict[Callable[..., Any], dict[str, Any]] = {
    api.vm_name: {"type": "string", "pattern": VM_NAME},
    api.store_id: {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"},
    api.image_name: {
        "type": "string",
        "pattern": "^(?:[a-z0-9][a-z0-9-]{0,62}|[0-9a-f]{64})$",
    },
    desktop.typeable: {
        "type": "string",
        "pattern": "^[^\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f]*$",
    },
    desktop.combination: {"type": "string", "pattern": "^[^\\u0000-\\u0020\\u007f-\\u00a0]+$"},
}


def camel(name: str) -> str:
    """Give the name of a field in HTTP."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def public(wire: Any, kind: Any) -> Any:
    """Give the HTTP form of a wire value of a type.

    Raises `GuestError` for a number that JSON's readers do not take as it is: the daemon has none.
    """
    kind = _without_none(kind)
    if attrs.has(kind):
        hints = get_type_hints(kind)
        return {
            camel(name): public(value, hints[name])
            for name, value in wire.items()
            if value is not None
        }
    if get_origin(kind) is list:
        (element,) = get_args(kind)
        return [public(item, element) for item in wire]
    if isinstance(wire, str):
        return as_unicode(wire)
    if isinstance(wire, int) and abs(wire) > MOST:
        raise GuestError(f"the guest gave a number that cannot be true: {wire}")
    return wire


def schema(kind: Any, components: dict[str, Any]) -> dict[str, Any]:
    """Describe a type; the classes in it are put into ``components``."""
    kind = _without_none(kind)
    if attrs.has(kind):
        name = kind.__name__
        if name not in components:
            components[name] = {}
            components[name] = _class_schema(kind, components)
        return {"$ref": f"#/components/schemas/{name}"}
    match get_origin(kind):
        case origin if origin is Literal:
            return {"type": "string", "enum": list(get_args(kind))}
        case origin if origin is list:
            return {"type": "array", "items": schema(get_args(kind)[0], components)}
        case origin if origin is dict:
            return {"type": "object", "additionalProperties": schema(get_args(kind)[1], components)}
    simple = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return {"type": simple[kind]} if kind in simple else {}


def _class_schema(kind: Any, components: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    properties: dict[str, Any] = {}
    for field in attrs.fields(kind):
        properties[camel(field.name)] = field_schema(field, hints[field.name], components)
    described: dict[str, Any] = {
        "type": "object",
        "description": (kind.__doc__ or "").strip(),
        "properties": properties,
        "additionalProperties": False,
    }
    required = [camel(one.name) for one in attrs.fields(kind) if one.default is attrs.NOTHING]
    if required:
        described["required"] = required
    return described | getattr(kind, "__schema__", {})


def field_schema(
    field: attrs.Attribute[Any], kind: Any, components: dict[str, Any]
) -> dict[str, Any]:
    """Describe a field: its type, and what its validators ask for."""
    described = schema(kind, components)
    for validator in _validators_of(field.validator):
        described |= _constraint(validator, described)
    described |= field.metadata.get("schema", {})
    if described.get("type") == "integer":
        described = {"minimum": -MOST, "maximum": MOST} | described
    return described


def _validators_of(validator: Any) -> Iterator[Any]:
    if inner := getattr(validator, "_validators", None):
        for one in inner:
            yield from _validators_of(one)
    elif (inner := getattr(validator, "validator", None)) is not None:
        yield from _validators_of(inner)
    elif validator is not None:
        yield validator


def _constraint(validator: Any, described: dict[str, Any]) -> dict[str, Any]:
    kind = "Items" if described.get("type") == "array" else "Length"
    if (bound := getattr(validator, "bound", None)) is not None:
        return {"minimum" if validator.compare_op == ">=" else "maximum": bound}
    if (most := getattr(validator, "max_length", None)) is not None:
        return {f"max{kind}": most}
    if (least := getattr(validator, "min_length", None)) is not None:
        return {f"min{kind}": least}
    return _PATTERNS.get(validator, {})


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (only,) = (one for one in get_args(kind) if one is not type(None))
        return only
    return kind


def from_text(kind: Any, values: dict[str, str]) -> dict[str, Any]:
    """Read the values of a query, which are text, as what the fields of a class are."""
    hints = get_type_hints(kind)
    return {name: _read(name, text, hints.get(name)) for name, text in values.items()}


def _read(name: str, text: str, kind: Any) -> Any:
    kind = _without_none(kind)
    if kind is bool and text in ("true", "false"):
        return text == "true"
    if kind is int:
        digits = text.removeprefix("-")
        if digits.isascii() and digits.isdecimal() and len(digits) < 20:
            return int(text)
        raise InvalidParamsError(f"{name}: expected a whole number")
    if kind is bool:
        raise InvalidParamsError(f"{name}: expected true or false")
    return text
