"""HTTP that other machines may reach: with TLS and tokens."""

from __future__ import annotations

import socket
import ssl
from http.client import HTTPSConnection
from pathlib import Path

import pytest
import trustme
from http_daemon import Web, read_all
from real_daemon import free_port, passable_directory, running_daemon, write_config

from arrakis import (
    AccessDeniedError,
    ConnectionLostError,
    NotFoundError,
    Sandbox,
    SandboxManager,
)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def open_web(authority: trustme.CA):  # type: ignore[no-untyped-def]
    """A daemon that listens on all addresses."""
    with passable_directory() as directory:
        own, key = directory / "cert.pem", directory / "key.pem"
        issued = authority.issue_cert("localhost", "127.0.0.1", "vms.example")
        own.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        port = free_port()
        file = write_config(directory / "state", network='mode = "none"')
        settings = (
            f'[http]\naddress = "0.0.0.0:{port}"\ntls_certificate = "{own}"\ntls_key = "{key}"\n'
        )
        file.write_text(f'{file.read_text()}{settings}allowed_hosts = ["vms.example"]\n')
        with started_without_namespace(directory, file) as daemon:
            with SandboxManager(socket=daemon.socket) as manager:
                made = manager._client.call("token.create", {"name": "tests"})
            yield Web(daemon, port, made.token)


def started_without_namespace(directory: Path, file: Path):  # type: ignore[no-untyped-def]
    return running_daemon(directory / "state", f"--config={file}")


def ask(web: Web, authority: trustme.CA, **headers: str) -> int:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    connection = HTTPSConnection("127.0.0.1", web.port, timeout=30, context=context)
    connection.request("GET", "/v1/health", headers=web.headers(**headers))
    status = connection.getresponse().status
    connection.close()
    return status


def test_it_serves_by_tls(open_web: Web, authority: trustme.CA) -> None:
    """With the certificate of the settings, by the names in them and its own address."""
    assert ask(open_web, authority) == 200
    assert ask(open_web, authority, Host="vms.example") == 200
    assert ask(open_web, authority, Host="evil.example") == 403
    assert ask(open_web, authority, Authorization="Bearer wrong") == 401


def test_it_serves_nothing_else(open_web: Web) -> None:
    """What does not speak TLS gets no answer, nor does one who never begins."""
    with socket.create_connection(("127.0.0.1", open_web.port)) as one:
        one.sendall(open_web.head("GET /v1/health HTTP/1.1"))
        assert b"HTTP" not in read_all(one, 15)
    with socket.create_connection(("127.0.0.1", open_web.port)) as one:
        assert read_all(one, 15) == b""


def test_old_versions_are_refused(open_web: Web) -> None:
    """Nothing older than TLS 1.2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", open_web.port)) as one,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(one)


def test_the_sdk_speaks_tls(open_web: Web, authority: trustme.CA, tmp_path: Path) -> None:
    """With the CA that it is given, and requests longer than a record of TLS; without it not."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    url = f"https://localhost:{open_web.port}"
    with SandboxManager(url, open_web.token, ca_file=tmp_path / "ca.pem") as manager:
        assert manager.health().status == "healthy"
        assert manager.doctor().checks
        with pytest.raises(NotFoundError, match="n" * 60):
            manager.get("n" * 60)
        with pytest.raises(NotFoundError):
            Sandbox(manager._client, "nobody").files.write("a", bytes(2**20))
        assert manager.health().status == "healthy"
    with (
        SandboxManager(url, open_web.token) as distrusting,
        pytest.raises(ConnectionLostError, match="not to be trusted"),
    ):
        distrusting.health()
    with (
        SandboxManager(url, "ark_wrong", ca_file=tmp_path / "ca.pem") as stranger,
        pytest.raises(AccessDeniedError, match="does not know the token"),
    ):
        stranger.health()


def test_tls_agrees_on_http_1(open_web: Web, authority: trustme.CA) -> None:
    """Also with a client that would rather have HTTP/2."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", open_web.port)) as one,
        context.wrap_socket(one, server_hostname="localhost") as secured,
    ):
        assert secured.selected_alpn_protocol() == "http/1.1"
