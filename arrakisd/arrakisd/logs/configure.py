"""Logs: entries of the journal, coloured text on a terminal, else JSON lines; secrets never."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from .journal import JournalLogger, is_journal, render_for_journal
from .request_id import current_request_id

_SECRET = ("token", "password", "secret", "key", "authorization")
_REDACTED = "(redacted)"
# What can stand inside of a text, a URL or a traceback for instance, under any name.
_SECRET_TEXT = re.compile(
    r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)|(?<=\bBearer )[^\s\"']+|(?<=\bBasic )\S+"
)


def configure_logs(form: str, level: str) -> None:
    """Set up structlog; ``form`` is that of `Config.log_format`."""
    if form == "auto":
        form = "journal" if is_journal() else "text" if sys.stderr.isatty() else "json"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _name_request,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if form == "text" else [structlog.processors.format_exc_info]),
            _redact,
            _renderer(form),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=(
            JournalLogger() if form == "journal" else structlog.PrintLoggerFactory(sys.stderr)
        ),
    )


def _renderer(form: str) -> Any:
    if form == "journal":
        return render_for_journal
    if form == "text":
        return structlog.dev.ConsoleRenderer()
    return structlog.processors.JSONRenderer()


def _name_request(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if request_id := current_request_id():
        event["request_id"] = request_id
    return event


def _redact(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = _REDACTED if _is_secret(name) else _without_secrets(value)
    return event


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and any(word in name.lower() for word in _SECRET)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET_TEXT.sub(_REDACTED, value)
    if isinstance(value, dict):
        return {
            name: _REDACTED if _is_secret(name) else _without_secrets(part)
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(part) for part in value]
    return value
