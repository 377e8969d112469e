"""The verb that serves sandboxes as tools, by the Model Context Protocol."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import click

from .common import manager, verb

_TOKEN = "ARRAKIS_MCP_TOKEN"  # noqa: S105 -- the name of a variable


@verb("mcp", "arrakis mcp\narrakis mcp --http 127.0.0.1:7001")
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Serve streamable HTTP there, at /mcp, instead of stdin and stdout.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Holds the token that clients over HTTP must bear.  [default: ${_TOKEN}]",
)
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="In PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="In PEM.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Another name under which clients reach it over HTTP; repeatable.",
)
def mcp(
    http: str | None,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    allow_host: tuple[str, ...],
) -> None:
    """Serve sandboxes as tools of a language model (MCP).

    Over HTTP it listens on loopback only, unless there are a token and a certificate.
    """
    if http is None and (token_file or tls_cert or tls_key or allow_host):
        raise click.UsageError("these options belong to --http")
    _require_extra()
    from arrakis.mcp import serving

    if http is None:
        serving.serve_stdio(manager())
        return
    host, port = _address(http)
    options = serving.HttpOptions(
        host, port, _token(token_file), tls_cert, tls_key, allowed_hosts=allow_host
    )
    serving.serve_http(manager(), options)


def _require_extra() -> None:
    from arrakis_rpc.errors import UnsupportedError

    if importlib.util.find_spec("mcp") is None:
        raise UnsupportedError(
            "the library of the Model Context Protocol is not installed",
            hint="pip install 'arrakis[mcp]'",
        )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise click.UsageError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _token(file: Path | None) -> str | None:
    from arrakis_rpc.errors import InvalidParamsError

    if file is None:
        return os.environ.get(_TOKEN) or None
    token = file.read_text().strip()
    if not token:
        raise InvalidParamsError(f"{file} holds no token")
    return token


VERBS = [mcp]
