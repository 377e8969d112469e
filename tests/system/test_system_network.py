"""What guests reach, and what they do not, as it looks from inside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest_network import Target, place_of, probe, set_egress, siblings, start
from in_guest import ask
from internet import DAEMON_SIDE, NOT_PUBLIC, OTHER_PUBLIC, PUBLIC, Internet, internet
from real_daemon import Daemon, namespace_of, wait_until

from arrakis import Sandbox, SandboxManager

pytestmark = pytest.mark.vm

HELLO = f"hello {DAEMON_SIDE}"
GATEWAY = "10.20.1.1"


@pytest.fixture(scope="module")
def world(daemon: Daemon) -> Iterator[Internet]:
    """The internet, for this module's guests."""
    with internet(namespace_of(daemon.state)) as connected:
        yield connected


def both(address: str, port: int) -> list[Target]:
    """One port by TCP and by UDP."""
    return [("tcp", address, port), ("udp", address, port)]


def test_internet_through_nat(manager: SandboxManager, world: Internet) -> None:
    """A guest reaches the internet, which sees the host's address and not the guest's."""
    service = world.serve(PUBLIC)
    with siblings(manager, "one") as (one,):
        assert probe(one, both(PUBLIC, service.port), hellos=2) == [HELLO, HELLO]
    assert set(service.heard) == {("tcp", DAEMON_SIDE), ("udp", DAEMON_SIDE)}


def test_firewall_of_others(manager: SandboxManager, daemon: Daemon, world: Internet) -> None:
    """Where another table drops all that is forwarded, the doctor says so, and what mends it."""
    service = world.serve(PUBLIC)
    target = [("tcp", PUBLIC, service.port)]
    chain = "type filter hook forward priority 0; policy drop;"
    try:
        daemon.inside("nft", f"add table ip foreign; add chain ip foreign f {{ {chain} }}")
        with siblings(manager, "one") as (one,):
            assert probe(one, target) == ["silent"]
            [found] = [check for check in manager.doctor().checks if check.name == "forwarding"]
            assert not found.ok
            assert "'ip foreign'" in found.detail
            daemon.inside("sh", "-c", found.fix or "")
            assert probe(one, target) == [HELLO]
        [found] = [check for check in manager.doctor().checks if check.name == "forwarding"]
        assert found.ok
    finally:
        daemon.inside("nft", "delete table ip foreign")


def test_private_networks(manager: SandboxManager, world: Internet) -> None:
    """Private and link-local addresses, which the host can reach, are out of a guest's reach."""
    services = [world.serve(address, 8080) for address in NOT_PUBLIC]
    for service in services:
        with world.connect(world.daemon, service.address, 8080) as control:
            assert control.recv(100)
    public = world.serve(PUBLIC, 8080)
    targets = [target for service in services for target in both(service.address, 8080)]
    with siblings(manager, "one") as (one,):
        answers = probe(one, [*targets, *both(PUBLIC, 8080)], hellos=2)
    assert answers == ["silent"] * len(targets) + [HELLO, HELLO]
    assert len(public.heard) == 2
    assert all(len(service.heard) == 1 for service in services)


def test_services_of_the_host(manager: SandboxManager, world: Internet) -> None:
    """Whatever listens on the host, on whichever address, is out of a guest's reach."""
    everywhere = world.serve("0.0.0.0", where=world.daemon)
    services = [everywhere] + [
        world.serve(address, where=world.daemon) for address in (GATEWAY, DAEMON_SIDE)
    ]
    addresses = [GATEWAY, DAEMON_SIDE, "10.20.1.255", "255.255.255.255", "224.0.0.1"]
    targets = [target for address in addresses for target in both(address, everywhere.port)]
    targets += [target for one in services[1:] for target in both(one.address, one.port)]
    with world.connect(world.daemon, GATEWAY, everywhere.port) as control:
        assert control.recv(100)
    with siblings(manager, "one") as (one,):
        answers = probe(one, targets)
        assert not [answer for answer in answers if answer.startswith("hello")]
    assert services[0].heard == [("tcp", GATEWAY)]
    assert services[1].heard == services[2].heard == []


GREETER = """
import socket, threading
def tcp():
    s = socket.create_server(("0.0.0.0", 7000))
    while True:
        c, peer = s.accept()
        c.sendall(peer[0].encode())
        c.close()
def udp():
    s = socket.socket(type=socket.SOCK_DGRAM)
    s.bind(("0.0.0.0", 7000))
    while True:
        data, peer = s.recvfrom(100)
        s.sendto(peer[0].encode(), peer)
threading.Thread(target=tcp).start()
threading.Thread(target=udp).start()
open("/tmp/server_files/greets", "w").close()
"""


def greet(sandbox: Sandbox) -> None:
    """Make a guest answer at port 7000, by TCP and UDP."""
    sandbox.exec(["python3", "-S", "-c", GREETER], background=True).wait()
    wait_until(lambda: sandbox.files.exists("greets"), 10)


def test_siblings(manager: SandboxManager, world: Internet, daemon: Daemon) -> None:
    """No guest reaches another one: at its address, by broadcast, or by way of the gateway."""
    with siblings(manager, "one", "two") as (one, two):
        greet(two)
        place, other = place_of(one, daemon), place_of(two, daemon)
        with world.connect(world.daemon, other.ip, 7000) as control:
            assert control.recv(100)
        targets = [*both(other.ip, 7000), ("udp", "10.20.1.255", 7000)]

        def reached() -> list[str]:
            return [answer for answer in probe(one, targets, 1.5) if answer.startswith("hello")]

        assert reached() == []
        for mac in (other.mac, place.gateway_mac):
            ask_root(one, f"ip neigh replace {other.ip} lladdr {mac} dev eth0 nud permanent")
            assert reached() == []
        ask_root(one, f"ip neigh del {other.ip} dev eth0")
        ask_root(one, f"ip route add {other.ip}/32 via {GATEWAY}")
        assert reached() == []


def ask_root(sandbox: Sandbox, command: str) -> str:
    """Run a command as the guest's root, which must succeed."""
    return sandbox.run(command, user="root", check=True).text


def test_no_egress(manager: SandboxManager, world: Internet) -> None:
    """A guest without egress reaches nothing; what is restored or forked of it neither."""
    service = world.serve(PUBLIC)
    targets = both(PUBLIC, service.port)
    none = {"mode": "none", "allow": []}
    with start(manager, "closed", egress=none) as closed:
        assert probe(closed, targets) == ["silent", "silent"]
        snapshot = closed.snapshot()
        (fork,) = closed.fork(1)
        assert probe(fork, targets) == ["silent", "silent"]
    with manager.restore("again", snapshot) as again:
        assert again.info()["egress"]["mode"] == "none"
        assert probe(again, targets) == ["silent", "silent"]
    assert service.heard == []
    asked = {"mode": "internet", "allow": []}
    with start(manager, "opened", snapshot=snapshot, egress=asked) as opened:
        assert probe(opened, targets, hellos=2) == [HELLO, HELLO]


def test_allowed_targets(manager: SandboxManager, world: Internet) -> None:
    """With a list, a guest reaches what is on it, at those ports, and nothing else."""
    first, second = world.serve(PUBLIC), world.serve(PUBLIC)
    beside, metadata = world.serve(OTHER_PUBLIC, first.port), world.serve(NOT_PUBLIC[0])
    allow = [f"{PUBLIC}:{first.port}", f"{metadata.address}:{metadata.port}"]
    services = [first, second, beside, metadata]
    targets = [target for one in services for target in both(one.address, one.port)]
    with start(manager, "picky", egress={"mode": "allow", "allow": allow}) as picky:
        assert probe(picky, targets, hellos=2) == [HELLO] * 2 + ["silent"] * 6
        (fork,) = picky.fork(1)
        assert probe(fork, targets, hellos=2) == [HELLO] * 2 + ["silent"] * 6
        set_egress(manager, picky, "allow", "93.184.215.0/28")
        assert probe(picky, targets, hellos=6) == [HELLO] * 6 + ["silent"] * 2
        assert probe(fork, targets, hellos=2) == [HELLO] * 2 + ["silent"] * 6


KEEP_OPEN = """
import socket, sys, threading, time
host, port = sys.argv[1], int(sys.argv[2])
stream = socket.create_connection((host, port))
datagrams = socket.socket(type=socket.SOCK_DGRAM)
datagrams.connect((host, port))
def hear(kind, s):
    while data := s.recv(4096):
        print(kind, flush=True)
threading.Thread(target=hear, args=("tcp", stream), daemon=True).start()
threading.Thread(target=hear, args=("udp", datagrams), daemon=True).start()
for line in sys.stdin:
    stream.sendall(b"guest says " + line.encode())
    datagrams.send(line.encode())
"""


def test_change_cuts_open_connections(manager: SandboxManager, world: Internet) -> None:
    """When egress is taken away, neither way of an open connection carries anything more."""
    service = world.serve(PUBLIC)
    with siblings(manager, "one") as (one,):
        command = ["python3", "-S", "-u", "-c", KEEP_OPEN, PUBLIC, str(service.port)]
        with one.exec(command, stdin=True) as process:
            process.stdin.write(b"first\n")
            lines, said = process.stdout_lines(), []
            while said.count("tcp") < 2 or "udp" not in said:  # a greeting, an echo, an answer
                said.append(next(lines))
            set_egress(manager, one, "none")
            heard = len(service.heard)
            process.stdin.write(b"second\n")
            service.say(b"from the internet\n")
            assert ask(one, "sleep 1; echo done") == "done"
            process.stdin.close()
            rest = process.wait(60)
        assert rest.stdout == b""
        assert len(service.heard) == heard
