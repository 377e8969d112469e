"""The verbs on a machine's network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_harness import FORWARD, GUI, Cli
from scripted_daemon import VM, Peer, completed

from arrakis_rpc.connection import CallCancelled, CallReceived
from arrakis_rpc.errors import CancelledError


def port(guest: int, host: int | None = None) -> dict[str, Any]:
    """What is sent for a port of which nothing else was said."""
    return {"guest_port": guest, "host_port": host, "description": "", "publish": False}


@pytest.mark.parametrize(
    ("line", "method", "params", "output"),
    [
        (
            "start box --egress none -p 8000 --port 8080:80",
            "vm.start",
            {
                "name": "box",
                "network": {
                    "egress": {"mode": "none", "allow": []},
                    "ports": [port(8000), port(80, 8080)],
                },
            },
            None,
        ),
        (
            "restore box -i before --allow pypi.org:443 --allow *.example.com",
            "vm.start",
            {
                "name": "box",
                "snapshot": "before",
                "network": {
                    "egress": {"mode": "allow", "allow": ["pypi.org:443", "*.example.com"]}
                },
            },
            None,
        ),
        (
            "start box -s before --egress internet",
            "vm.start",
            {
                "name": "box",
                "snapshot": "before",
                "network": {"egress": {"mode": "internet", "allow": []}},
            },
            None,
        ),
        (
            "ports box add 8000",
            "port.add",
            {"vm": "box", "port": {"guest_port": 8000, "description": "", "publish": False}},
            "forwarded port 20000 of all addresses to port 8000 of box\n",
        ),
        (
            "ports -n box add 8080:8000 --publish --description web",
            "port.add",
            {
                "vm": "box",
                "port": {
                    "guest_port": 8000,
                    "host_port": 8080,
                    "description": "web",
                    "publish": True,
                },
            },
            None,
        ),
        (
            "ports box remove 20000",
            "port.remove",
            {"vm": "box", "host_port": 20000},
            "removed 20000\n",
        ),
        (
            "egress -n box none",
            "egress.set",
            {"vm": "box", "egress": {"mode": "none", "allow": []}},
            None,
        ),
        (
            "egress box --allow 93.184.0.0/16:80-90",
            "egress.set",
            {"vm": "box", "egress": {"mode": "allow", "allow": ["93.184.0.0/16:80-90"]}},
            None,
        ),
    ],
)
def test_verb_asks_for_what_its_words_say(
    arrakis: Cli, line: str, method: str, params: dict[str, Any], output: str | None
) -> None:
    """What is chosen of the network is sent, and nothing that was not chosen."""
    arrakis.asks(line, method, params, output)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ports box", [FORWARD, GUI]),
        ("ports box add 8000", FORWARD),
        ("ports box remove 20000", {"name": "box", "host_port": 20000, "done": "removed"}),
        ("gui box", {"host": "127.0.0.1", "port": 20001, "password": None}),
    ],
)
def test_results_can_be_had_as_json(arrakis: Cli, line: str, expected: object) -> None:
    """With --json stdout is one JSON value, with the names that the SDK has."""
    code, out, err = arrakis(*line.split(), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == expected


def test_ports_are_a_table(arrakis: Cli) -> None:
    """The ports of a machine are listed in columns, and none is changed."""
    _, out, _ = arrakis("ports", "box")
    assert out.splitlines() == [
        "HOST    GUEST   PUBLISHED   DESCRIPTION",
        "20000   8000    yes         web",
        "20001   5901    -           gui",
    ]
    assert arrakis.asked == [("port.list", {"name": "box"})]


def test_added_port_is_told_where_it_is_reached(arrakis: Cli) -> None:
    """A port that is not published is at the loopback; without a description none is shown."""
    arrakis.serve(port_add=GUI)
    _, out, _ = arrakis("ports", "box", "add", "5901")
    assert out == "forwarded 127.0.0.1:20001 to port 5901 of box\n"
    nameless = {"host_port": "20001", "guest_port": "5901", "description": ""}
    arrakis.serve(vm_info={**VM, "port_forwards": [nameless]})
    _, out, _ = arrakis("list", "box")
    assert "Port 20001 -> 5901\n" in out


@pytest.mark.parametrize(
    ("egress", "text"),
    [
        ({"mode": "none", "allow": []}, "none"),
        ({"mode": "allow", "allow": ["pypi.org:443", "1.1.1.1"]}, "only pypi.org:443, 1.1.1.1"),
        (None, "not connected to a network"),
    ],
)
def test_egress_is_shown_without_being_changed(
    arrakis: Cli, egress: dict[str, Any] | None, text: str
) -> None:
    """Without a policy the one in force is told, also within a machine's description."""
    arrakis.serve(vm_info={**VM, "egress": egress})
    assert arrakis("egress", "box") == (0, f"{text}\n", "")
    assert json.loads(arrakis("egress", "box", "--json")[1]) == egress
    _, out, _ = arrakis("list", "box")
    assert ([line for line in out.splitlines() if line.startswith("Egress:")] != []) == bool(egress)
    assert {method for method, _ in arrakis.asked} == {"vm.info"}


def test_changed_egress_is_shown_as_the_daemon_has_it(arrakis: Cli) -> None:
    """After a change, what the daemon says is in force is printed."""
    arrakis.serve(vm_info={**VM, "egress": {"mode": "none", "allow": []}})
    assert arrakis("egress", "box", "none") == (0, "none\n", "")
    assert [method for method, _ in arrakis.asked] == ["egress.set", "vm.info"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ports box add web", "'web' is neither GUEST nor HOST:GUEST"),
        ("ports box add 0", "'guest_port' must be >= 1"),
        ("start box -p 1:2:3", "'1:2:3' is neither GUEST nor HOST:GUEST"),
        ("ports box remove 70000", "'host_port' must be <= 65535"),
        ("egress box --allow http://x", "allow[0] is neither a port nor a range of ports"),
        ("egress box --allow a_b!", "allow[0] is neither an IPv4 network nor a domain name"),
    ],
)
def test_nonsense_is_2_and_asks_for_nothing(arrakis: Cli, line: str, message: str) -> None:
    """What is no port, or no target, is named before anything is asked of the daemon."""
    code, out, err = arrakis(*line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert arrakis.asked == []


def test_gui_tells_how_to_connect(arrakis: Cli) -> None:
    """The address is that of the forward described as gui."""
    code, out, err = arrakis("gui", "box")
    assert (code, err) == (0, "")
    assert "127.0.0.1:20001\n" in out
    assert "vncviewer 127.0.0.1::20001\n" in out
    assert "Password" not in out


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (b"1a2b3c4d\n", "1a2b3c4d"),
        (b"\x1b[2J", None),
        (b"123456789", None),
        (b"", None),
        (b"1a2b3c4d\n" + b" " * 4096, None),
    ],
)
def test_gui_tells_the_password(
    arrakis: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: bytes,
    shown: str | None,
) -> None:
    """The guest is asked; what could be a password is shown, and given to the viewer unseen."""

    def tell(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stdout", told)
        return completed()

    arrakis.serve(exec_run=tell)
    viewer = tmp_path / "vncviewer"
    viewer.write_text(f'#!/bin/sh\necho "$@" "${{VNC_PASSWORD-none}}" > {tmp_path}/asked\n')
    viewer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    code, out, err = arrakis("gui", "box", "--open")
    assert (code, err) == (0, "")
    assert (f"Password:       {shown}\n" in out) == (shown is not None)
    assert ("Password" in out) == (shown is not None)
    assert (tmp_path / "asked").read_text() == f"127.0.0.1::20001 {shown or 'none'}\n"
    assert json.loads(arrakis("gui", "box", "--json")[1])["password"] == shown


def test_gui_reads_no_more_than_a_password_takes(arrakis: Cli) -> None:
    """A guest that never stops talking is stopped, and has no password."""

    def talk(peer: Peer, call: CallReceived) -> Any:
        while not any(isinstance(event, CallCancelled) for event in peer.waiting):
            peer.data(call, "stderr", bytes(1000))
        return CancelledError("cancelled")

    arrakis.serve(exec_run=talk)
    assert json.loads(arrakis("gui", "box", "--json")[1])["password"] is None


def test_gui_tells_why_the_guest_has_no_password_for_it(arrakis: Cli) -> None:
    """A program for the password that fails is an error, with what it says."""

    def refuse(peer: Peer, call: CallReceived) -> Any:
        peer.data(call, "stderr", b"no desktop\n")
        return completed(exit_code=1)

    arrakis.serve(exec_run=refuse)
    said = "error: command failed: exit status 1\n  no desktop\n"
    assert arrakis("gui", "box") == (1, "", said)


def test_gui_of_a_machine_without_such_a_port_says_how_to_have_one(arrakis: Cli) -> None:
    """Where no forward is described as gui, the error has the command that adds one."""
    arrakis.serve(port_list={"ports": [FORWARD]})
    assert arrakis("gui", "box") == (
        3,
        "",
        "error: no port of the host leads to a desktop of 'box'\n"
        "hint: arrakis ports box add 5901 --description gui\n",
    )


def test_gui_opens_the_viewer_that_is_installed(
    arrakis: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The viewer gets the address, and its exit code is ours."""
    viewer = tmp_path / "vncviewer"
    viewer.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit 5\n')
    viewer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert arrakis("gui", "box", "--open")[0] == 5
    assert (tmp_path / "asked").read_text() == "127.0.0.1::20001\n"


def test_gui_without_a_viewer_says_what_to_install(
    arrakis: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no viewer the address is told all the same."""
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = arrakis("gui", "box", "--open")
    assert code == 1
    assert "127.0.0.1:20001" in out
    assert err.startswith("error: the program vncviewer is not installed here\nhint: apt-get")
