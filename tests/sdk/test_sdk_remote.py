"""Finding a daemon by URL, being let in, and what is said when that fails."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from scripted_daemon import HEALTH, GoneError, Peer, Script, Server, answering, completed
from scripted_websocket import TOKEN, WebSocketEnd

from arrakis import (
    AccessDeniedError,
    ConnectionLostError,
    ExhaustedError,
    InvalidParamsError,
    ProtocolError,
    Sandbox,
    SandboxManager,
)
from arrakis._address import HttpAddress, UnixAddress, find_address
from arrakis_rpc.connection import CallReceived

Start = Callable[[Script], Server]
SECRET = "ark_verysecret"


@pytest.fixture
def transport() -> str:
    return "http"


@pytest.fixture(autouse=True)
def _no_daemon_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOCKET", "URL", "TOKEN", "CA_FILE"):
        monkeypatch.delenv(f"ARRAKIS_{name}", raising=False)


def http(url: str, token: str | None = None, ca_file: str | None = None) -> HttpAddress:
    """What is found for a URL."""
    address = find_address(url, token, ca_file=ca_file, environment={})
    assert isinstance(address, HttpAddress)
    return address


@pytest.mark.parametrize(
    ("url", "shown", "authority", "endpoint"),
    [
        ("http://localhost:7000", "http://localhost:7000", "localhost:7000", "/v1/rpc"),
        ("http://h:80/", "http://h", "h", "/v1/rpc"),
        ("https://h", "https://h", "h", "/v1/rpc"),
        ("https://h:80/a/b/", "https://h:80/a/b", "h:80", "/a/b/v1/rpc"),
        ("http://[::1]:7000", "http://[::1]:7000", "[::1]:7000", "/v1/rpc"),
        ("http://x:t@h:7000", "http://h:7000", "h:7000", "/v1/rpc"),
    ],
)
def test_a_url_names_host_port_and_path(
    url: str, shown: str, authority: str, endpoint: str
) -> None:
    """A port may be left out, a path stands before ours, and a token in it is not shown again."""
    address = http(url)
    assert (str(address), address.authority, address.endpoint) == (shown, authority, endpoint)


@pytest.mark.parametrize(
    "url",
    [
        "/run/x.sock",
        "ftp://h",
        "http://",
        "http://h:port",
        "http://h:70000",
        "http://h/?a=b",
        "http://h/#x",
        "http://h/a b",
        "http://[::1",
        "http://h\r\nX: y",
    ],
)
def test_what_is_no_url_is_refused_without_being_shown(url: str) -> None:
    """There may be a token in it."""
    with pytest.raises(InvalidParamsError) as caught:
        SandboxManager(url.replace("//", f"//x:{SECRET}@"))
    assert SECRET not in f"{caught.value} {caught.value.hint}"


def test_argument_wins_over_url_wins_over_environment() -> None:
    """The token is the one given, else the one in the URL, else ARRAKIS_TOKEN."""
    environment = {"ARRAKIS_TOKEN": "env", "ARRAKIS_CA_FILE": "/ca"}

    def token(url: str, token: str | None = None) -> str | None:
        address = find_address(url, token, environment=environment)
        assert isinstance(address, HttpAddress)
        assert address.ca_file == "/ca"
        return address.token

    assert token("http://h") == "env"
    assert token("http://x:in%2Durl@h") == "in-url"
    assert token("http://x:in-url@h", "given") == "given"


def test_what_is_given_wins_over_the_environment() -> None:
    """A socket or URL that is given wins; ARRAKIS_URL wins over ARRAKIS_SOCKET; empty is unset."""
    both = {"ARRAKIS_URL": "http://h", "ARRAKIS_SOCKET": "/s"}
    assert str(find_address(environment=both)) == "http://h"
    assert find_address(socket="/mine", environment=both) == UnixAddress("/mine")
    assert str(find_address("http://mine", environment=both)) == "http://mine"
    assert find_address(environment={**both, "ARRAKIS_URL": ""}) == UnixAddress("/s")


@pytest.mark.parametrize(
    "given",
    [
        {"base_url": "http://h", "socket": "/s"},
        {"token": "t"},
        {"ca_file": "/ca"},
        {"token": "t", "socket": "/s"},
        {"base_url": "http://h", "token": "two words"},
        {"base_url": "http://h", "token": "line\r\nX-Evil: 1"},
        {"base_url": "http://h", "token": "ä"},
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, str]) -> None:
    """A token without a URL is a mistake, and so is what no header can hold."""
    with pytest.raises(InvalidParamsError) as caught:
        SandboxManager(**given)  # type: ignore[arg-type]
    assert "Evil" not in str(caught.value)


def test_no_secret_is_in_what_is_shown() -> None:
    """Neither the address nor its parts show the token."""
    manager = SandboxManager("http://h:7000", SECRET)
    assert manager.address == "http://h:7000"
    assert manager.socket is None
    assert SECRET not in repr(manager._client.address)


@pytest.mark.parametrize(
    ("token", "message"), [(None, "wants a token"), ("ark_wrong", "does not know the token")]
)
def test_missing_and_wrong_tokens_say_how_to_get_one(
    scripted: Start, token: str | None, message: str
) -> None:
    """Who has no token, or a wrong one, is told what to do; the token is not repeated."""
    manager = SandboxManager(scripted(answering(system_health=HEALTH)).url, token)
    with pytest.raises(AccessDeniedError, match=message) as caught:
        manager.health()
    assert "arrakis token create" in str(caught.value.hint)
    assert "ark_wrong" not in str(caught.value)


class Answering:
    """A port that says one thing to whoever comes, and hangs up."""

    def __init__(self, answer: bytes, context: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answer = answer
        self._context = context
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        with sock:
            sock.settimeout(60)
            sock.recv(65536)
            sock.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def listening() -> Iterator[Callable[[bytes], Answering]]:
    made: list[Answering] = []

    def listen(answer: bytes) -> Answering:
        made.append(Answering(answer))
        return made[-1]

    yield listen
    for one in made:
        one.close()


def refusal(status: str, message: str = "") -> bytes:
    """An answer of a daemon, or of something else."""
    body = b'{"error": {"message": "%s"}}' % message.encode() if message else b"<html>"
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (refusal("403 Forbidden", "no such host"), AccessDeniedError, "no such host"),
        (refusal("403 Forbidden"), AccessDeniedError, "forbidden"),
        (refusal("429 Slow", "too many wrong tokens"), AccessDeniedError, "too many wrong"),
        (refusal("503 Busy", "512 requests"), ExhaustedError, "512 requests"),
        (refusal("404 Not Found"), ConnectionLostError, "HTTP status 404"),
        (refusal("200 OK"), ConnectionLostError, "HTTP status 200"),
        (refusal("302 Found"), ConnectionLostError, "HTTP status 302"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ConnectionLostError, "hung up"),
        (b"\x15\x03\x01\x00\x02\x02\x16", ConnectionLostError, "no Arrakis daemon"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", ConnectionLostError, "daemon"),
        (b"", ConnectionLostError, "hung up"),
    ],
)
def test_what_answers_otherwise_is_an_error_with_a_hint(
    listening: Callable[[bytes], Answering], answer: bytes, kind: type[Exception], message: str
) -> None:
    """Whatever listens there instead of a daemon, the error says what, and what to do."""
    with pytest.raises(kind, match=message) as caught:
        SandboxManager(listening(answer).url, SECRET).health()
    assert caught.value.hint  # type: ignore[attr-defined]
    assert SECRET not in f"{caught.value}{caught.value.hint}"  # type: ignore[attr-defined]


def test_port_that_nobody_listens_on_is_an_error_with_a_hint() -> None:
    """Nobody there, and no such host, are told from one another."""
    with closing(socket.socket()) as deaf:
        deaf.bind(("127.0.0.1", 0))  # without listening, so that nobody else does
        port = deaf.getsockname()[1]
        with pytest.raises(ConnectionLostError, match="nothing listens at http") as caught:
            SandboxManager(f"http://127.0.0.1:{port}", SECRET).health()
    assert "[http]" in str(caught.value.hint)
    with pytest.raises(ConnectionLostError, match=r"no host 'nobody\.invalid'"):
        SandboxManager("http://nobody.invalid", SECRET).health()


def test_host_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the connection and then is silent is not waited for for ever."""
    monkeypatch.setattr("arrakis._wire.CONNECT_SECONDS", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        manager = SandboxManager(f"http://127.0.0.1:{silent.getsockname()[1]}", SECRET)
        with pytest.raises(ConnectionLostError, match="does not answer"):
            manager.health()


def test_a_sign_of_life_is_answered_and_costs_no_connection(scripted: Start) -> None:
    """The daemon may ask idle and busy connections whether they live; they stay in use."""

    def script(peer: Peer) -> None:
        assert isinstance(peer.sock, WebSocketEnd)
        for number in range(3):
            call = peer.call()
            peer.sock.ping()
            peer.answer(call, HEALTH)
            peer.sock.ping()
            assert peer.sock.pongs >= 2 * number - 1

    server = scripted(script)
    manager = server.manager
    for _ in range(3):
        manager.health()
    assert server.connections == 1


def test_connection_that_is_ended_tells_why(scripted: Start) -> None:
    """The reason that the daemon gives for ending a connection is in the error."""

    def script(peer: Peer) -> None:
        peer.call()
        assert isinstance(peer.sock, WebSocketEnd)
        peer.sock.end(1001, "going away")
        with suppress(GoneError, ConnectionError):
            peer.event()

    with pytest.raises(ConnectionLostError, match="going away"):
        scripted(script).manager.health()


def test_what_breaks_the_rules_of_websockets_is_a_breach(scripted: Start) -> None:
    """Reserved bits, for one, end the call with a word about it."""

    def script(peer: Peer) -> None:
        peer.call()
        assert isinstance(peer.sock, WebSocketEnd)
        peer.sock.sock.sendall(b"\xff\x00")

    with pytest.raises(ProtocolError, match="rules of WebSockets"):
        scripted(script).manager.health()


class Tls:
    """A proxy with TLS before a scripted daemon."""

    def __init__(self, ca: trustme.CA, server: Server, name: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(name).configure_cert(self._context)
        self._target = server._listener.getsockname()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            try:
                secured = self._context.wrap_socket(sock, server_side=True)
            except (OSError, ssl.SSLError):
                sock.close()
                continue
            target = socket.create_connection(self._target)
            back = threading.Thread(target=_copy, args=(target, secured))
            back.start()
            _copy(secured, target)
            back.join(10)
            secured.close()
            target.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_https_verifies_the_certificate(
    scripted: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its CA named a daemon is trusted; without, or under another name, it is not."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = scripted(answering(system_health=HEALTH))
    with closing(Tls(ca, server, "127.0.0.1")) as good, closing(Tls(ca, server, "other")) as bad:
        with SandboxManager(good.url, TOKEN, ca_file=tmp_path / "ca.pem") as manager:
            assert manager.health().status == "healthy"
            assert manager.health().status == "healthy"
        assert server.connections == 1
        with pytest.raises(ConnectionLostError, match="not to be trusted") as caught:
            SandboxManager(good.url, TOKEN).health()
        assert "ca_file" in str(caught.value.hint)
        monkeypatch.setenv("ARRAKIS_CA_FILE", str(tmp_path / "ca.pem"))
        with pytest.raises(ConnectionLostError, match=r"not to be trusted: .*127\.0\.0\.1"):
            SandboxManager(bad.url, TOKEN).health()
        with SandboxManager(good.url, TOKEN) as manager:
            manager.health()
        with pytest.raises(ConnectionLostError) as caught:
            SandboxManager(good.url.replace("https", "http"), TOKEN).health()
        assert "https" in str(caught.value.hint)
        with pytest.raises(ConnectionLostError, match=r"no TLS|hung up") as caught:
            SandboxManager(server.url.replace("http", "https"), TOKEN).health()
        assert "http://" in str(caught.value.hint)
    with pytest.raises(ConnectionLostError, match="cannot be read as certificates"):
        SandboxManager("https://127.0.0.1:1", TOKEN, ca_file=tmp_path / "none").health()


def test_streams_pass_through_tls(scripted: Start, tmp_path: Path) -> None:
    """Megabytes in both directions at once arrive as they were sent."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    data = bytes(range(256)) * 12_000

    def echo(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", peer.read_all(call))
        return completed()

    proxy = Tls(ca, scripted(answering(exec_run=echo)), "127.0.0.1")
    with closing(proxy), SandboxManager(proxy.url, TOKEN, ca_file=tmp_path / "ca.pem") as manager:
        done = Sandbox(manager._client, "box").run("cat", input=data)
    assert done.stdout == data
