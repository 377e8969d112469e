"""The description of all routes, made of the routes and the types that they name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, get_type_hints

import attrs

from arrakis_rpc import daemon_api as api

from .. import __version__
from . import models as m
from .json_form import camel, field_schema, schema
from .routes import BYTES, EVENTS, JSON, PNG, Route

_EVERYWHERE = (400, 401, 403, 404, 408, 413, 429, 500, 503)
_REASONS = {
    400: "something in the request is wrong",
    401: "no token, or a wrong one",
    403: "not from there, or refused by the guest's system",
    404: "there is no such thing",
    408: "the body came too slowly",
    409: "not in this state, or the name is taken",
    413: "the body is too large",
    416: "the file has no such range",
    422: "this host, or the guest's system, cannot do it",
    429: "too many wrong tokens",
    500: "a defect of the daemon, or damaged data",
    502: "the guest or the hypervisor failed",
    503: "something of the host does not suffice",
    504: "it took too long",
    507: "the guest's disk is full",
}


def describe(routes: Iterable[Route]) -> dict[str, Any]:
    """Describe routes in the form of OpenAPI 3.1."""
    components: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in routes:
        operations = paths.setdefault(route.path, {})
        operations[route.verb.lower()] = _operation(route, components)
    schema(m.ErrorResponse, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Arrakis",
            "version": __version__,
            "description": "Disposable Linux microVMs that can go back in time.",
        },
        "security": [{"bearer": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "any user; the token is the password",
                },
            },
        },
    }


def _operation(route: Route, components: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "description": inspect.getdoc(route.handler) or "",
        "parameters": [*_path_parameters(route), *_query_parameters(route, components)],
        "responses": _responses(route, components),
    }
    if route.body is not None:
        content = {JSON: {"schema": schema(route.body, components)}}
        operation["requestBody"] = {"required": True, "content": content}
    elif route.takes == BYTES:
        operation["requestBody"] = {"required": True, "content": {BYTES: {"schema": _BYTES}}}
    return operation


_BYTES = {"type": "string", "format": "binary"}
_EVENT = {
    "type": "object",
    "description": "each of the events that come",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "description": "JSON"},
    },
}


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    known = {
        "name": _field_of(api.VmName, "name"),
        "id": _field_of(api.SnapshotId, "id"),
        "hostPort": {"type": "integer", "minimum": 1, "maximum": 65535},
    }
    return [
        {"name": name, "in": "path", "required": True, "schema": known[name]}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]


def _field_of(kind: Any, name: str) -> dict[str, Any]:
    return field_schema(attrs.fields_dict(kind)[name], get_type_hints(kind)[name], {})


def _query_parameters(route: Route, components: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    hints = get_type_hints(route.query)
    return [
        {
            "name": camel(field.name),
            "in": "query",
            "required": field.default is attrs.NOTHING,
            "schema": field_schema(field, hints[field.name], components),
        }
        for field in attrs.fields(route.query)
    ]


def _responses(route: Route, components: dict[str, Any]) -> dict[str, Any]:
    described = {BYTES: _BYTES, PNG: _BYTES, EVENTS: _EVENT}.get(route.gives, {"type": "string"})
    if route.result is not None:
        described = schema(route.result, components)
    answer = {"description": route.summary, "content": {route.gives: {"schema": described}}}
    responses: dict[str, Any] = {"200": answer}
    fails = {*_EVERYWHERE, *route.fails}
    if route.partial:
        responses["206"] = {**answer, "description": "the range that was asked for"}
        fails.add(416)
    problem = {JSON: {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    for status in sorted(fails):
        responses[str(status)] = {"description": _REASONS[status], "content": problem}
    return responses
