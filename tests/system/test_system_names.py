"""Names: who may ask for which, and what may be reached by them, from inside of guests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from guest_network import probe, set_egress, start
from internet import DAEMON_SIDE, NOT_PUBLIC, OTHER_PUBLIC, PUBLIC, Internet, internet
from real_daemon import namespace_of, running_daemon, write_config

from arrakis import SandboxManager

pytestmark = pytest.mark.vm

HELLO = f"hello {DAEMON_SIDE}"
METADATA = NOT_PUBLIC[0]
PORT = 8080
KNOWN = {
    "allowed.example": PUBLIC,
    "below.wild.example": PUBLIC,
    "other.example": OTHER_PUBLIC,
    "metadata.example": METADATA,
}


@contextmanager
def named_world(state: Path) -> Iterator[tuple[SandboxManager, Internet]]:
    """A daemon that asks a name server in its internet, where all known names are served."""
    config = write_config(state, network=f'dns = ["{OTHER_PUBLIC}"]')
    with (
        running_daemon(state, f"--config={config}") as daemon,
        internet(namespace_of(state)) as world,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        for address in (PUBLIC, OTHER_PUBLIC, METADATA):
            world.serve(address, PORT)
        yield manager, world
        manager.destroy_all()


def test_names(template_state: Path) -> None:
    """By name a guest reaches what its policy allows, and by address what it was told; no more."""
    with named_world(template_state) as (manager, world):
        server = world.serve_names(OTHER_PUBLIC, KNOWN)
        allow = [f"allowed.example:{PORT}", "*.wild.example", "metadata.example"]
        with start(manager, "picky", egress={"mode": "allow", "allow": allow}) as picky:

            def reach(name: str, kind: str = "tcp", hellos: int = 0) -> str:
                return probe(picky, [(kind, name, PORT)], 1.5, hellos)[0]

            assert reach(PUBLIC) == "silent"  # nobody has asked for its name
            assert reach("other.example") not in (HELLO, "silent")
            assert "other.example" not in server.asked
            assert [reach("ALLOWED.example", kind, 1) for kind in ("tcp", "udp")] == [HELLO, HELLO]
            assert reach(PUBLIC, hellos=1) == HELLO
            assert reach("below.wild.example", hellos=1) == HELLO
            assert reach("metadata.example") != HELLO  # wherever a name leads
            assert reach(OTHER_PUBLIC) == "silent"
            (fork,) = picky.fork(1)
            assert probe(fork, [("tcp", PUBLIC, PORT)], 1.5) == ["silent"]
            assert probe(fork, [("tcp", "allowed.example", PORT)], hellos=1) == [HELLO]
            set_egress(manager, picky, "none")
            assert reach("allowed.example") != HELLO
            assert reach(PUBLIC) == "silent"
            set_egress(manager, picky, "internet")
            assert reach("other.example", hellos=1) == HELLO


def test_no_way_around_the_name_server(template_state: Path) -> None:
    """A guest with a list cannot ask another name server than the daemon's."""
    with named_world(template_state) as (manager, world):
        server = world.serve_names(OTHER_PUBLIC, KNOWN)
        egress = {"mode": "allow", "allow": ["allowed.example"]}
        with start(manager, "picky", egress=egress) as picky:
            targets = [("udp", OTHER_PUBLIC, 53), ("tcp", OTHER_PUBLIC, 53)]
            assert probe(picky, targets) == ["silent", "silent"]
        assert server.asked == []
