"""Strict structuring: wire values become typed objects, or an error that names the field.

cattrs converts by default (``"2"`` would become 2, ``1`` would become ``"1"``); here a
value of a wrong type is refused, and so is a field that the type does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from cattrs import BaseValidationError, Converter, transform_error
from cattrs.v import format_exception

from .errors import InvalidParamsError

T = TypeVar("T")


def _exactly(kind: type, *also: type) -> Callable[[Any, Any], Any]:
    accepted = (kind, *also)

    def hook(value: Any, _: Any) -> Any:
        if type(value) not in accepted:
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        return float(value) if kind is float else value

    return hook


def make_converter() -> Converter:
    """Make a converter with the strict rules of this protocol."""
    converter = Converter(forbid_extra_keys=True, prefer_attrib_converters=False)
    for kind in (bool, int, str, bytes):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, _exactly(float, int))
    converter.register_unstructure_hook(bytes, lambda value: value)
    return converter


_converter = make_converter()


def structure(value: object, kind: type[T]) -> T:
    """Make a ``kind`` of a wire value; raise `InvalidParamsError` naming each bad field."""
    try:
        return _converter.structure(value, kind)
    except BaseValidationError as error:
        problems = "; ".join(_readable(problem) for problem in transform_error(error, "", _explain))
        raise InvalidParamsError(problems) from error
    except (TypeError, ValueError) as error:
        raise InvalidParamsError(str(error)) from error


def unstructure(value: object) -> Any:
    """Give the wire form of a typed object."""
    return _converter.unstructure(value)


def _explain(error: BaseException, kind: type | None) -> str:
    if type(error) in (TypeError, ValueError) and error.args:
        return str(error)
    return format_exception(error, kind)


def _readable(problem: str) -> str:
    text, _, path = problem.rpartition(" @ ")
    path = path.lstrip(".")
    return f"{path}: {text}" if path else text
