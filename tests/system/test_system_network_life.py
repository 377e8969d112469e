"""Addresses, taps and rules over the lives of VMs and of the daemon."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from frames import ARP, IPV4
from guest_network import place_of, start
from in_guest import Background
from internet import Capture, inside, ip, links, namespace, nft
from real_daemon import (
    Daemon,
    files_below,
    is_running,
    namespace_of,
    running_daemon,
    started_daemon,
    wait_until,
    write_config,
)

from arrakis import ExhaustedError, Sandbox, SandboxManager

pytestmark = pytest.mark.vm

BRIDGE = "arrakis0"
PORTS = [{"guest_port": 22, "publish": True}]
FOREIGN = "table inet foreign {\n\tchain kept {\n\t\taccept\n\t}\n}\n"

# Never silent: by ordinary means, and by frames made before whatever happens to the guest.
CHATTER = """
import socket, struct
from fcntl import ioctl
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
mac = bytes.fromhex(open("/sys/class/net/eth0/address").read().strip().replace(":", ""))
own = ioctl(raw, 0x8915, b"eth0".ljust(32, b"\\0"))[20:24]
arp = b"\\xff" * 6 + mac + struct.pack("!HHHBBH", 0x806, 1, 0x800, 6, 4, 1) + (mac + own) * 2
listening = socket.create_server(("0.0.0.0", 7000))
listening.settimeout(0.002)
datagrams = socket.socket(type=socket.SOCK_DGRAM)
open("/tmp/server_files/chatters", "w").close()
while True:
    raw.send(arp)
    try:
        datagrams.sendto(b"chatter", ("10.20.1.1", 9))
    except OSError:
        pass
    try:
        listening.accept()[0].sendall(open("/etc/hostname", "rb").read())
    except TimeoutError:
        pass
"""


def chatter(sandbox: Sandbox) -> None:
    command = ["python3", "-S", "-c", CHATTER]
    sandbox.exec(command, background=True, user="root").wait()
    wait_until(lambda: sandbox.files.exists("chatters"), 20)


def senders(capture: Capture, kind: int, offset: int) -> set[tuple[str, bytes, bytes]]:
    """Where frames of a kind came in, from which MAC and which IP address."""
    return {
        (seen.link, seen.frame[6:12], seen.frame[offset : offset + 4])
        for seen in capture.seen
        if not seen.leaves and int.from_bytes(seen.frame[12:14], "big") == kind
    }


def greeting(namespace: str, address: str) -> str:
    """What a guest answers at its address."""
    with inside(namespace):
        client = socket.create_connection((address, 7000), timeout=10)
    with client:
        return client.recv(100).decode().strip()


def test_addresses_of_siblings(manager: SandboxManager, daemon: Daemon) -> None:
    """Forks and restores wake with addresses of their own, and never speak under another's."""
    space = namespace_of(daemon.state)
    with Capture(space) as capture:
        source = manager.start_sandbox("source")
        chatter(source)
        snapshot = source.snapshot()
        restores = [
            Background(lambda name=f"restore{n}": manager.restore(name, snapshot))  # type: ignore[misc]
            for n in range(3)
        ]
        family = [source, *source.fork(3), *(restore.wait() for restore in restores)]
        places = {sandbox.name: place_of(sandbox, daemon) for sandbox in family}
        greetings = {name: greeting(space, place.ip) for name, place in places.items()}
    assert greetings == {name: name for name in places}
    assert len({place.ip for place in places.values()}) == 7
    own = {(place.mac, place.ip) for place in places.values()}
    datagrams, arps = senders(capture, IPV4, 26), senders(capture, ARP, 28)
    heard = {
        (mac.hex(":"), socket.inet_ntoa(address))
        for link, mac, address in datagrams | arps
        if link == BRIDGE
    }
    assert heard == own
    # The raw frames apart, which keep the old addresses, and for which there is the filter.
    at_taps = {(link, mac.hex(":"), socket.inet_ntoa(a)) for link, mac, a in datagrams}
    at_taps = {one for one in at_taps if one[0] != BRIDGE}
    assert at_taps == {(place.tap, place.mac, place.ip) for place in places.values()}


@pytest.mark.slow
def test_many_restores(manager: SandboxManager, daemon: Daemon) -> None:
    """Fifty restores in a row leave no tap, lease, rule, file or descriptor behind."""
    with manager.start_sandbox("source") as source:
        snapshot = source.snapshot()
    with manager.restore("warm", snapshot):
        pass
    with daemon.leaves_nothing():
        addresses = set()
        for _ in range(50):
            with manager.restore("again", snapshot) as again:
                addresses.add(again.info()["ip"])
    assert len(addresses) > 1


@contextmanager
def small_daemon(state: Path, network: str) -> Iterator[SandboxManager]:
    """A daemon with little to give out."""
    config = write_config(state, network=network)
    with running_daemon(state, f"--config={config}") as daemon:
        wait_until(lambda: len(links(namespace_of(state))) == 6, 5)  # with the taps in store
        with daemon.leaves_nothing(), SandboxManager(socket=daemon.socket) as manager:
            yield manager
            manager.destroy_all()


def test_addresses_exhausted(template_state: Path) -> None:
    """With all addresses given out, a start says so, and the end of a VM makes room."""
    with small_daemon(template_state, 'address = "10.99.0.1/29"') as manager:
        sandboxes = [manager.start_sandbox(f"vm{n}") for n in range(5)]
        assert len({sandbox.info()["ip"] for sandbox in sandboxes}) == 5
        with pytest.raises(ExhaustedError, match=r"no address left in 10\.99\.0\.0/29") as caught:
            manager.start_sandbox("late")
        assert "destroy a VM" in (caught.value.hint or "")
        freed = sandboxes[2].info()["ip"]
        sandboxes[2].destroy()
        assert manager.start_sandbox("late").info()["ip"] == freed


def test_fork_beyond_the_addresses(template_state: Path) -> None:
    """A fork for which the addresses do not suffice leaves none of the siblings."""
    with small_daemon(template_state, 'address = "10.99.0.1/30"') as manager:
        source = manager.start_sandbox("source")
        with pytest.raises(ExhaustedError, match=r"10\.99\.0\.0/30"):
            source.fork(2)
        assert [sandbox.name for sandbox in manager.list_all()] == ["source"]


def test_ports_exhausted(template_state: Path) -> None:
    """With all ports given out, a start says so and leaves nothing; a VM's end makes room."""
    # Of those that no other daemon of these tests is given.
    with small_daemon(template_state, 'host_ports = "32000-32007"') as manager:
        first = manager.start_sandbox("first")
        with pytest.raises(ExhaustedError, match="no host port left in 32000-32007"):
            manager.start_sandbox("second")
        start(manager, "third", ports=[{"guest_port": 1}, {"guest_port": 2}])
        first.destroy()
        assert len(manager.start_sandbox("second").info()["port_forwards"]) == 6


@pytest.fixture
def space() -> Iterator[str]:
    """A namespace with things of others, for a daemon to be told to use."""
    with namespace("used") as name:
        ip("-n", name, "link", "add", "foreign0", "type", "bridge")
        ip("-n", name, "tuntap", "add", "foreign1", "mode", "tap")
        ip("-n", name, "link", "set", "foreign1", "master", "foreign0")
        nft(name, FOREIGN)
        ip("netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=0")
        yield name


def config_for(state: Path, space: str | None) -> str:
    """The flag for a configuration that names a namespace that is there, or none."""
    file = state.parent / "given.toml"
    file.write_text(f'[network]\nnamespace = "{space}"\n' if space else "")
    return f"--config={file}"


def leases(state: Path) -> set[str]:
    return {path for path in files_below(state, "network") if path.count("/") > 1}


def test_killed_daemon(template_state: Path, space: str) -> None:
    """After a kill the next daemon sweeps what is its own, and only that."""
    before, config = set(links(space)), config_for(template_state, space)
    with (
        started_daemon(template_state, config) as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        manager.start_sandbox("one")
        start(manager, "two", ports=PORTS)
        pids = daemon.vmm_pids()
        daemon.process.kill()
        daemon.process.wait()
        wait_until(lambda: not any(is_running(pid) for pid in pids), 5)
    wait_until(lambda: set(links(space)) == before | {BRIDGE}, 5)  # taps go with their holders
    assert "10.20.1.2" in nft(space, "list", "ruleset")
    assert leases(template_state)
    with running_daemon(template_state, config) as daemon:
        assert "10.20.1.2" not in nft(space, "list", "ruleset")
        assert leases(template_state) == set()
        with SandboxManager(socket=daemon.socket) as manager, manager.start_sandbox("one") as one:
            assert one.info()["ip"] == "10.20.1.2/24"
    assert set(links(space)) == before
    assert links(space)["foreign1"]["master"] == "foreign0"
    assert nft(space, "list", "ruleset") == FOREIGN


def test_somebody_elses_bridge(template_state: Path, space: str) -> None:
    """A bridge with our name that is not ours stops the daemon, each time, and stays."""
    ip("-n", space, "link", "add", BRIDGE, "type", "bridge")
    before = links(space)
    for _ in range(2):
        with (
            pytest.raises(pytest.fail.Exception, match="'arrakis0' that is not this daemon's"),
            started_daemon(template_state, config_for(template_state, space)),
        ):
            pass
        assert links(space) == before
        assert nft(space, "list", "ruleset") == FOREIGN
    assert "choose another name: bridge in [network]" in (Path(f"{template_state}.log").read_text())


def picture(space: str) -> dict[str, str]:
    """All of a namespace that a daemon could change."""
    enter = ["nsenter", f"--net=/run/netns/{space}"]
    looks = {
        "links": "ip -o -d link",
        "addresses": "ip -o addr",
        "routes": "ip route show table all; ip -6 route show table all; ip rule; ip -6 rule",
        "neighbours": "ip neigh",
        "rules": "nft list ruleset",
        "settings": "cd /proc/sys/net && grep -r . core ipv4 ipv6 netfilter 2>&1 "
        "| grep -v -e nf_conntrack_count -e stable_secret -e /gc_stale | sort",
    }
    return {
        name: subprocess.run(
            [*enter, "sh", "-c", look], check=True, capture_output=True, text=True
        ).stdout
        for name, look in looks.items()
    }


def test_host_is_untouched(template_state: Path, space: str) -> None:
    """With a namespace for its VMs, a daemon changes nothing in its own, while it runs and after.

    The daemon's own is here one in which nobody else works.
    """
    before = picture(space)
    with inside(space):
        running = running_daemon(template_state)
        daemon = running.__enter__()
    try:
        with SandboxManager(socket=daemon.socket) as manager, start(manager, "one", ports=PORTS):
            assert picture(space) == before
    finally:
        running.__exit__(None, None, None)
    assert picture(space) == before


def test_without_a_namespace(template_state: Path, space: str) -> None:
    """In its own namespace too a daemon takes all with it, save that packets are forwarded."""
    before = picture(space)
    with inside(space):
        running = running_daemon(template_state, config_for(template_state, None))
        daemon = running.__enter__()
    try:
        with SandboxManager(socket=daemon.socket) as manager, start(manager, "one", ports=PORTS):
            assert picture(space)["links"] != before["links"]
    finally:
        running.__exit__(None, None, None)
    after = picture(space)
    changed = set(before.pop("settings").split()) ^ set(after.pop("settings").split())
    assert after == before
    assert changed
    changed = {setting.partition(":")[0].rpartition("/")[2] for setting in changed}
    assert changed <= {"ip_forward", "forwarding", "accept_redirects"}
