"""Commands and events as they happen, and files of any size in both directions."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from http_daemon import Web, events_of
from real_daemon import shortest, wait_until

from arrakis import Sandbox, SandboxManager

pytestmark = pytest.mark.vm

MIB = 2**20


@pytest.fixture
def sandbox(web: Web) -> Iterator[Sandbox]:
    with SandboxManager(socket=web.daemon.socket) as manager, manager.start_sandbox("vm") as one:
        yield one


def runs(sandbox: Sandbox, name: str) -> bool:
    return sandbox.run(["pgrep", "-x", name]).ok


def test_output_comes_while_the_command_runs(web: Web, sandbox: Sandbox) -> None:
    """Each channel as its own event, text whole in spite of how it was cut, and then the exit."""
    command = (
        "echo out; echo err >&2; until [ -e /tmp/heard ]; do sleep .1; done;"
        " printf 'gr\\303'; sleep .3; printf '\\266\\377'; exit 4"
    )
    with web.open("POST", "/v1/vms/vm/exec", {"cmd": command}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        events = events_of(response)
        told = [next(events), next(events)]
        sandbox.files.write("/tmp/heard", "")
        told += events
    assert sorted(told[:2]) == [("stderr", {"text": "err\n"}), ("stdout", {"text": "out\n"})]
    assert "".join(data["text"] for kind, data in told[2:-1]) == "grö\ufffd"
    kind, data = told[-1]
    assert kind == "exit"
    assert (data["exitCode"], data["error"], data["timedOut"]) == (4, "exit status 4", False)


def test_a_command_has_input_environment_directory_and_user(web: Web, sandbox: Sandbox) -> None:
    """And a list of words in place of a text for the shell; bytes come as base64."""
    body = {
        "argv": ["sh", "-c", 'cat; echo "$A $(pwd) $(id -un)"'],
        "stdin": "in\n",
        "env": {"A": "b"},
        "cwd": "/",
        "user": "root",
        "encoding": "base64",
    }
    with web.open("POST", "/v1/vms/vm/exec", body) as response:
        told = list(events_of(response))
    output = b"".join(base64.b64decode(data["base64"]) for kind, data in told if kind == "stdout")
    assert output == b"in\nb / root\n"


def test_what_cannot_be_started_has_a_status(web: Web, sandbox: Sandbox) -> None:
    """No such VM, no such program, no such user: 404 and no stream."""
    for path, body in (
        ("/v1/vms/nobody/exec", {"cmd": "true"}),
        ("/v1/vms/vm/exec", {"argv": ["no-such-program"]}),
        ("/v1/vms/vm/exec", {"cmd": "true", "user": "nobody-knows"}),
    ):
        answer = web.ask("POST", path, body)
        assert (answer.status, bool(answer.json["error"]["message"])) == (404, True)


def test_a_time_limit_ends_a_command(web: Web, sandbox: Sandbox) -> None:
    """And the exit says so."""
    with web.open("POST", "/v1/vms/vm/exec", {"cmd": "sleep 60", "timeout": 0.5}) as response:
        told = dict(events_of(response))
    assert told["exit"]["timedOut"]


@pytest.mark.parametrize("path", ["exec", "cmd"])
def test_a_client_that_leaves_ends_its_command_within_a_second(
    web: Web, sandbox: Sandbox, path: str
) -> None:
    """Whether it waits for events or for the whole answer."""
    body = b'{"cmd": "exec -a leaver sleep 600"}'

    def leave() -> float:
        with web.connected() as one:
            one.sendall(
                web.head(f"POST /v1/vms/vm/{path} HTTP/1.1", f"Content-Length: {len(body)}") + body
            )
            wait_until(lambda: sandbox.run(["pgrep", "-f", "leaver"]).ok, 20)
        began = time.monotonic()
        wait_until(lambda: not sandbox.run(["pgrep", "-f", "leaver"]).ok, 20)
        return time.monotonic() - began

    bound = 1.0 + 0.5  # of which the last look takes a part
    assert shortest(leave, bound) < bound


def test_a_file_goes_in_and_out_byte_by_byte(web: Web, sandbox: Sandbox) -> None:
    """A file of 24 MiB, in chunks and with a length; the daemon holds little of it."""
    content = os.urandom(24 * MIB)
    before = web.daemon.memory_mib()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(content), MIB):
            yield content[start : start + MIB]

    connection = HTTPConnection("127.0.0.1", web.port, timeout=300)
    connection.request("PUT", "/v1/vms/vm/file?path=big", pieces(), web.headers())
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b'{"path": "big", "size": 25165824}')
    assert web.daemon.memory_mib() - before < 20
    connection.request("GET", "/v1/vms/vm/file?path=big", headers=web.headers())
    response = connection.getresponse()
    assert response.headers["Content-Length"] == str(len(content))
    digest = hashlib.sha256(response.read()).digest()
    connection.close()
    assert digest == hashlib.sha256(content).digest()
    assert web.daemon.memory_mib() - before < 20


def test_parts_of_a_file(web: Web, sandbox: Sandbox) -> None:
    """One range as RFC 9110 has it: from, to, the last ones; others are refused or ignored."""
    sandbox.files.write("ten", "0123456789")
    path = "/v1/vms/vm/file?path=ten"
    whole = web.ask("GET", path)
    assert (whole.status, whole.body, whole.headers["accept-ranges"]) == (
        200,
        b"0123456789",
        "bytes",
    )
    for asked, given, place in (
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=8-100", b"89", "bytes 8-9/10"),
    ):
        part = web.ask("GET", path, Range=asked)
        assert (part.status, part.body, part.headers["content-range"]) == (206, given, place)
    beyond = web.ask("GET", path, Range="bytes=10-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */10")
    for ignored in ("bytes=0-1,3-4", "lines=1-2", "bytes=4-2", "nonsense"):
        assert web.ask("GET", path, Range=ignored).body == b"0123456789"
    tag = whole.headers["etag"]
    assert web.ask("GET", path, Range="bytes=1-1", If_Range=tag).status == 206
    assert web.ask("GET", path, Range="bytes=1-1", If_Range='"other"').status == 200


def test_files_without_a_size_and_without_content(web: Web, sandbox: Sandbox) -> None:
    """Those that the kernel makes up while they are read are whole, and empty ones are empty."""
    version = sandbox.run(["cat", "/proc/version"]).stdout
    assert web.ask("GET", "/v1/vms/vm/file?path=/proc/version").body == version
    assert web.ask("PUT", "/v1/vms/vm/file?path=empty", b"").json["size"] == 0
    empty = web.ask("GET", "/v1/vms/vm/file?path=empty")
    assert (empty.status, empty.body) == (200, b"")


def test_what_the_guest_refuses_has_a_status(web: Web, sandbox: Sandbox) -> None:
    """Not there, not allowed, not a file."""
    statuses = [
        web.ask("GET", "/v1/vms/vm/file?path=missing").status,
        web.ask("GET", "/v1/vms/vm/file?path=/etc").status,
        web.ask("PUT", "/v1/vms/vm/file?path=/proc/nothing", b"x").status,
        web.ask("GET", "/v1/vms/vm/file").status,
        web.ask("GET", "/v1/vms/vm/file?path=a%00b").status,
    ]
    assert statuses[0] == 404
    assert statuses[1] == 409
    assert statuses[2] in (403, 404, 422)
    assert statuses[3:] == [400, 400]


def test_an_upload_that_is_cut_off_leaves_nothing(web: Web, sandbox: Sandbox) -> None:
    """Neither the file nor what it was to become, within a second."""

    def cut_off() -> float:
        with web.connected() as one:
            one.sendall(
                web.head("PUT /v1/vms/vm/file?path=half HTTP/1.1", "Content-Length: 99999999")
                + b"x" * MIB
            )
            wait_until(sandbox.files.list, 10)
        began = time.monotonic()
        wait_until(lambda: not sandbox.files.list(), 10)
        return time.monotonic() - began

    assert shortest(cut_off, 1.0) < 1.0
    time.sleep(0.5)
    assert sandbox.files.list() == []


def test_a_download_that_nobody_reads_takes_no_memory(web: Web, sandbox: Sandbox) -> None:
    """A file of 1 GiB waits for its reader, who may leave."""
    sandbox.run(["truncate", "-s", "1G", "/tmp/huge"], check=True)
    before = web.daemon.memory_mib()
    with web.connected() as one:
        one.sendall(web.head("GET /v1/vms/vm/file?path=/tmp/huge HTTP/1.1"))
        assert one.recv(15) == b"HTTP/1.1 200 \r\n"
        time.sleep(3)
        assert web.daemon.memory_mib() - before < 20
        assert web.ask("GET", "/v1/health").status == 200


def test_events_come_as_they_happen(web: Web) -> None:
    """A start, a pause and an end, in order."""
    with web.open("GET", "/v1/events") as response:
        web.ask("POST", "/v1/vms", {"vmName": "seen"})
        web.ask("PATCH", "/v1/vms/seen", {"status": "paused"})
        web.ask("DELETE", "/v1/vms/seen")
        seen = []
        for kind, data in events_of(response):
            assert (data["kind"], data["vm"]) == (kind, "seen")
            seen.append(kind)
            if kind == "vm.destroyed":
                break
    assert seen == ["vm.started", "vm.paused", "vm.stopped", "vm.destroyed"]


def test_more_output_than_an_answer_holds_ends_the_command(web: Web, sandbox: Sandbox) -> None:
    """And says so; the events of `exec` have no such bound."""
    answer = web.ask("POST", "/v1/vms/vm/cmd", {"cmd": "yes | head -c 20M"})
    assert answer.status == 200
    assert len(answer.json["output"]) == 16 * MIB
    assert "16 MiB" in answer.json["error"]
