"""The app: every route, what it reads and what it answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import structlog
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from arrakis_rpc.converter import structure
from arrakis_rpc.errors import ArrakisError, InternalError, InvalidParamsError

from ..service import Service
from ..wire.peer import domain_error_in
from . import (
    desktop_routes,
    document_routes,
    file_routes,
    metrics_routes,
    more_routes,
    store_routes,
    stream_routes,
    vm_routes,
)
from .exchange import Exchange
from .failures import failure
from .guards import RefusedError
from .json_form import from_text
from .routes import JSON, Ask, Route

log = structlog.get_logger()

ROUTES = [
    *vm_routes.ROUTES,
    *more_routes.ROUTES,
    *store_routes.ROUTES,
    *stream_routes.ROUTES,
    *file_routes.ROUTES,
    *desktop_routes.ROUTES,
    *metrics_routes.ROUTES,
]


def make_app(service: Service) -> QuartTrio:
    """Make the app, which asks everything of a service."""
    app = QuartTrio("arrakisd.http", static_folder=None, template_folder=None)
    app.url_map.merge_slashes = False
    app.config.update(PROVIDE_AUTOMATIC_OPTIONS=False, RESPONSE_TIMEOUT=None, BODY_TIMEOUT=None)
    for route in [*ROUTES, *document_routes.routes_about(ROUTES)]:
        app.add_url_rule(
            route.path.replace("{", "<").replace("}", ">"),
            endpoint=f"{route.verb} {route.path}",
            view_func=_view_of(route, service),
            methods=[route.verb],
        )
    for rule in app.url_map.iter_rules():
        # It comes with GET unasked for, and would read whole files to throw them away.
        (rule.methods or set()).discard("HEAD")
    app.register_error_handler(Exception, _on_error)
    return app


def _view_of(route: Route, service: Service) -> Callable[..., Awaitable[Response]]:
    async def view(**path: str) -> Response:
        exchange: Exchange = cast(Any, request.scope)["arrakis"]
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = None
        query = _query_of(route)
        if route.body is not None:
            body = structure(await exchange.json(), route.body)
        elif route.takes == JSON:
            exchange.discard_body()
        ask = Ask(service, exchange, path, query, body, headers)
        answer = await route.handler(ask)
        if isinstance(answer, Response):
            return answer
        return Response(json.dumps(answer), content_type=JSON)

    return view


def _query_of(route: Route) -> Any:
    given = request.args.to_dict(flat=False)
    if repeated := [name for name, values in given.items() if len(values) > 1]:
        raise InvalidParamsError(f"{repeated[0][:100]!r} is given more than once")
    values = {name: value for name, (value,) in given.items()}
    if route.query is None:
        if values:
            raise InvalidParamsError(f"there is no parameter {next(iter(values))[:100]!r}")
        return None
    return structure(from_text(route.query, values), route.query)


async def _on_error(problem: Exception) -> Response:  # noqa: ASYNC124 -- quart awaits it
    if isinstance(problem, HTTPException):
        allowed = getattr(problem, "valid_methods", None)
        headers = (("Allow", ", ".join(sorted(allowed))),) if allowed else ()
        problem = RefusedError(problem.code or 500, problem.name, headers)
    error: ArrakisError = _answerable(problem, f"{request.method} {request.path}"[:200])
    return failure(error)


def _answerable(problem: Exception, what: str) -> ArrakisError:
    """Find the error that a client is to hear of."""
    if error := domain_error_in(problem):
        return error
    log.error("request failed", what=what, exc_info=problem)
    return InternalError(
        f"{what} failed by a defect of the daemon",
        hint="the daemon's log has the traceback",
    )
