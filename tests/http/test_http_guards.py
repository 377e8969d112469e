"""Who is let in: hosts, origins and tokens, on HTTP and WebSocket, and how often one may fail."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve
from http_daemon import Web, read_all
from real_daemon import free_port, passable_directory, write_config

from arrakis import SandboxManager
from arrakisd.http.guards import Asked, FailedLogins, Gate, RefusedError
from arrakisd.settings.http import HttpConfig

PATHS = ["/v1/health", "/v1/vms", "/openapi.json", "/docs", "/no/such/path", "/v1/rpc"]


class Tokens:
    """Two tokens, of whom one is good."""

    def verify(self, token: str) -> str | None:
        return "mine" if token == "good" else None

    def while_valid(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def asked(**headers: str) -> Asked:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Asked({"host": "127.0.0.1:7000", **named}, "127.0.0.1", "127.0.0.1")


def gate(**settings: object) -> Gate:
    return Gate(HttpConfig(address="127.0.0.1:7000", **settings), Tokens())  # type: ignore[arg-type]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("upgrade", [False, True])
def test_nothing_is_told_without_a_token(web: Web, path: str, upgrade: bool) -> None:
    """Every path, be it there or not, and also as a WebSocket, is refused alike."""
    headers = dict(UPGRADE) if upgrade else {}
    answer = web.ask_as(headers, "GET", path)
    assert answer.status == 401
    assert "token" in answer.json["error"]["message"]
    assert answer.headers["www-authenticate"].startswith(("Bearer", "Basic"))


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
}


@pytest.mark.parametrize(
    "value",
    ["Bearer wrong", "Basic !!!", "Basic " + base64.b64encode(b"x:wrong").decode(), "Bearer", ""],
)
def test_a_wrong_token_is_refused(value: str) -> None:
    """In whatever form it comes."""
    with pytest.raises(RefusedError) as refused:
        gate().admit(asked(authorization=value), 0.0)
    assert refused.value.status == 401


@pytest.mark.parametrize(
    "value", ["Bearer good", "bearer good", "Basic " + base64.b64encode(b"any:good").decode()]
)
def test_a_good_token_is_let_in(value: str) -> None:
    """After Bearer, or as the password of any user."""
    assert gate().admit(asked(authorization=value), 0.0) == "mine"


@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1:7000", ""])
def test_a_name_that_was_rebound_to_us_is_refused(web: Web, host: str, upgrade: bool) -> None:
    """A Host that is none of ours is refused even with a good token."""
    more = UPGRADE if upgrade else {}
    answer = web.ask_as({**web.headers(), **more, "Host": host}, "GET", "/v1/vms")
    assert answer.status == 403
    assert "allowed_hosts" in answer.json["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "LOCALHOST:9", "[::1]:7"])
def test_names_of_loopback_are_ours(web: Web, host: str) -> None:
    """With any port, since something may lead to ours from there."""
    assert web.ask("GET", "/v1/health", Host=host).status == 200


@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_pages_of_others_are_refused(web: Web, origin: str, upgrade: bool) -> None:
    """An Origin that is none of ours is refused even with a good token."""
    more = UPGRADE if upgrade else {}
    answer = web.ask_as({**web.headers(), **more, "Origin": origin}, "DELETE", "/v1/vms")
    if upgrade:
        answer = web.ask_as({**web.headers(), **more, "Origin": origin}, "GET", "/v1/rpc")
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


def test_what_a_page_of_another_site_makes_a_browser_fetch_is_refused() -> None:
    """Also where browsers send no Origin, as with images."""
    with pytest.raises(RefusedError):
        gate().check_place(asked(sec_fetch_site="cross-site"))
    gate().check_place(asked(sec_fetch_site="same-origin"))
    gate().check_place(asked(sec_fetch_site="none"))


def test_a_page_of_our_own_may_ask(web: Web) -> None:
    """The origin of the page that the request is made to is allowed."""
    origin = f"http://127.0.0.1:{web.port}"
    assert web.ask("GET", "/v1/vms", Origin=origin).status == 200


def test_hosts_and_origins_can_be_allowed() -> None:
    """Those in the settings are, whatever their case, and no others."""
    allowing = gate(allowed_hosts=["VM.example"], allowed_origins=["https://App.example"])
    allowing.check_place(asked(host="vm.example:443", origin="https://app.example"))
    for other in (asked(host="x.vm.example"), asked(origin="http://app.example")):
        with pytest.raises(RefusedError):
            allowing.check_place(other)


def test_two_headers_of_one_name_fit_nothing(web: Web) -> None:
    """Of two Origins, or two tokens, neither is chosen."""
    with web.connected() as one:
        one.sendall(
            web.head("GET /v1/vms HTTP/1.1", "Origin: http://localhost", "Origin: http://localhost")
        )
        assert b" 403 " in one.recv(4096)


def test_who_fails_too_often_has_to_wait() -> None:
    """After ten failures an address waits for each further one, and others do not."""
    failed = FailedLogins()
    assert [failed.failed("1.2.3.4", 0.0) for _ in range(10)] == [None] * 10
    assert failed.failed("1.2.3.4", 0.0) == pytest.approx(6.0)
    assert failed.failed("5.6.7.8", 0.0) is None
    assert failed.failed("1.2.3.4", 6.5) is None
    assert failed.failed("1.2.3.4", 6.5) is not None


def test_addresses_that_fail_are_not_remembered_without_bound() -> None:
    """Ten thousand addresses take no more than those of the last."""
    failed = FailedLogins()
    for number in range(10_000):
        failed.failed(str(number), 0.0)
    assert len(failed._addresses) <= 4096


def test_too_many_wrong_tokens_are_answered_with_429_and_good_ones_with_200() -> None:
    """Whoever shares the address of a failing client is not locked out."""
    one = gate()
    statuses = []
    for _ in range(12):
        with pytest.raises(RefusedError) as refused:
            one.admit(asked(authorization="Bearer wrong"), 0.0)
        statuses.append(refused.value.status)
    assert statuses == [401] * 10 + [429] * 2
    assert dict(refused.value.headers)["Retry-After"]
    assert one.admit(asked(authorization="Bearer good"), 0.0) == "mine"


def test_a_revoked_token_is_refused_and_what_it_began_ends(web: Web) -> None:
    """At once, also a stream of events that runs."""
    with SandboxManager(socket=web.daemon.socket) as manager:
        made = manager._client.call("token.create", {"name": "brief"})
        brief = evolve(web, token=made.token)
        assert brief.ask("GET", "/v1/vms").status == 200
        with brief.connected() as one:
            one.sendall(brief.head("GET /v1/events HTTP/1.1"))
            assert b" 200 " in one.recv(4096)
            manager._client.call("token.revoke", {"name": "brief"})
            read_all(one, 2)
        assert brief.ask("GET", "/v1/vms").status == 401


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('address = "0.0.0.0:{port}"', "tls_certificate"),
        ('address = "0.0.0.0:{port}"\nauth = "none"', 'auth = "token"'),
        ('address = "[::]:{port}"', "tls_certificate"),
        ('address = "192.0.2.1:{port}"', "tls_certificate"),
        (
            'address = "0.0.0.0:{port}"\nauth = "none"\ntls_certificate = "c"\ntls_key = "k"',
            'auth = "token"',
        ),
        ('address = "127.0.0.1:{port}"\ntls_certificate = "c"', "belong together"),
        ('address = "127.0.0.1:{port}"\ntls_certificate = "/no"\ntls_key = "/no"', "no TLS with"),
        ('address = "somewhere:{port}"', "no IP address"),
        ('address = "127.0.0.1"', "no port"),
        ('addres = "127.0.0.1:{port}"', "did you mean 'address'?"),
    ],
)
def test_an_unsafe_or_wrong_address_keeps_the_daemon_from_starting(
    settings: str, said: str
) -> None:
    """It says why, and nothing listens."""
    with passable_directory() as directory:
        file = write_config(directory / "state", network='mode = "none"')
        with file.open("a") as stream:
            stream.write("[http]\n" + settings.format(port=free_port()))
        ended = started(file, directory)
    assert ended.returncode == 1
    assert said in ended.stderr


def started(file: Path, directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    where = [f"--state={directory / 'state'}", f"--socket={directory / 'sock'}"]
    argv = [sys.executable, "-m", "arrakisd", f"--config={file}", *where, *flags]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_the_flag_is_held_to_the_same(tmp_path: Path) -> None:
    """`--http 0.0.0.0:...` is refused as the setting is."""
    file = tmp_path / "arrakisd.toml"
    file.write_text("")
    ended = started(file, tmp_path, f"--http=0.0.0.0:{free_port()}")
    assert ended.returncode == 1
    assert "root in every VM" in ended.stderr
