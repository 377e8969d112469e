"""Giving the guest's interface its addresses, in real network name spaces."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from arrakis_agent.network import Networks
from arrakis_rpc.errors import GuestError, InvalidParamsError, NotFoundError
from arrakis_rpc.guest_api import Network

NETWORK = Network(
    mac="52:54:00:AB:cd:01",
    address="10.20.1.7/24",
    gateway="10.20.1.1",
    dns=["10.20.1.1", "2001:db8::1"],
)
OTHER = Network(mac="52:54:00:00:00:02", address="172.16.5.9/20", gateway="172.16.0.1")
_CLONE_NEWNET = 0x40000000


class NameSpace:
    """A network name space of its own, with a pair of interfaces of which one has a device."""

    def __init__(self, root: Path, thread: ThreadPoolExecutor, kept: ExitStack) -> None:
        self.root = root
        self._thread = thread
        self._kept = kept
        self.ip("link add name nic1 type veth peer name peer1")
        self.ip("link set peer1 up")
        for name in ("lo", "nic1", "docker0"):
            (root / "sys/class/net" / name).mkdir(parents=True)
        (root / "sys/class/net/nic1/device").mkdir()
        (root / "etc").mkdir()

    def do(self, function: Callable[[], Any]) -> Any:
        return self._thread.submit(function).result()

    def ip(self, words: str) -> Any:
        argv = ["ip", "-json", *words.split()]
        output = self.do(lambda: subprocess.run(argv, check=True, capture_output=True)).stdout
        return json.loads(output or b"null")

    def configure(self, network: Network) -> None:
        with closing(Networks(self.root)) as networks:
            self.do(lambda: networks.configure(network))

    def networks(self) -> Networks:
        """One that is kept; closed with the name space."""
        return self._kept.enter_context(closing(Networks(self.root)))

    def link(self) -> dict[str, Any]:
        (link,) = self.ip("address show dev nic1")
        return link

    def addresses(self) -> list[str]:
        return [
            f"{found['local']}/{found['prefixlen']}"
            for found in self.link()["addr_info"]
            if found["family"] == "inet"
        ]

    def routes(self) -> set[tuple[str, str | None]]:
        return {(route["dst"], route.get("gateway")) for route in self.ip("route show")}


def enter_name_space() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


@pytest.fixture
def space(tmp_path: Path) -> Iterator[NameSpace]:
    # A name space is a thread's own, and goes away with it.
    with ThreadPoolExecutor(1, initializer=enter_name_space) as thread, ExitStack() as kept:
        yield NameSpace(tmp_path, thread, kept)


def test_configured(space: NameSpace) -> None:
    """The interface of a device gets what was asked for: all of it, and nothing besides."""
    space.configure(NETWORK)
    link = space.link()
    assert link["address"] == "52:54:00:ab:cd:01"
    assert "UP" in link["flags"]
    assert space.addresses() == ["10.20.1.7/24"]
    assert space.routes() == {("default", "10.20.1.1"), ("10.20.1.0/24", None)}
    ((info,),) = [[i for i in link["addr_info"] if i["family"] == "inet"]]
    assert (info["broadcast"], info["scope"]) == ("10.20.1.255", "global")
    text = (space.root / "etc/resolv.conf").read_text()
    assert text == "nameserver 10.20.1.1\nnameserver 2001:db8::1\n"


def test_became_another(space: NameSpace) -> None:
    """Of a former network nothing is left, however often it changes while it is up."""
    for _ in range(2):
        space.configure(NETWORK)
        space.configure(OTHER)
        assert space.link()["address"] == OTHER.mac
        assert space.addresses() == ["172.16.5.9/20"]
        assert space.routes() == {("default", "172.16.0.1"), ("172.16.0.0/20", None)}


def test_within_one_network(space: NameSpace) -> None:
    """Siblings differ by little: another address in the same network, the same gateway."""
    space.configure(NETWORK)
    for address in ("10.20.1.8/24", "10.20.1.8/24", "10.20.1.7/25"):
        space.configure(evolve(NETWORK, address=address))
        assert space.addresses() == [address]
        assert ("default", "10.20.1.1") in space.routes()
        assert len(space.routes()) == 2


def test_added_by_hand(space: NameSpace) -> None:
    """Addresses that somebody added in the guest do not become the one it sends from."""
    space.configure(NETWORK)
    promote = Path("/proc/sys/net/ipv4/conf/nic1/promote_secondaries")
    space.do(lambda: promote.write_text("1"))  # as systemd sets it
    for address in ("10.20.1.99/24", "10.20.1.98/24", "192.168.9.9/24"):
        space.ip(f"address add {address} dev nic1")
    space.configure(evolve(NETWORK, address="10.20.1.8/24"))
    assert space.addresses() == ["10.20.1.8/24"]
    (route,) = space.ip("route get 10.20.1.1")
    assert route["prefsrc"] == "10.20.1.8"


def test_without_gateway(space: NameSpace) -> None:
    """Without a gateway there is no default route, not even the former one."""
    space.configure(NETWORK)
    space.configure(evolve(NETWORK, gateway=None, dns=[]))
    assert space.routes() == {("10.20.1.0/24", None)}
    assert (space.root / "etc/resolv.conf").read_text().count("nameserver") == 2


def test_routes_of_others_stay(space: NameSpace) -> None:
    """Networks that the guest made for itself, as containers do, are left alone."""
    space.ip("link add docker0 type bridge")
    space.ip("address add 172.17.0.1/16 dev docker0")
    space.ip("link set docker0 up")
    space.configure(NETWORK)
    assert ("172.17.0.0/16", None) in space.routes()


def test_name_servers_are_written_when_they_change(space: NameSpace) -> None:
    """A resolver file that says the right thing is not touched, another one is replaced."""
    resolver = space.root / "etc/resolv.conf"
    resolver.symlink_to("../stub")
    space.configure(NETWORK)
    assert not resolver.is_symlink()
    before = resolver.stat()
    space.configure(NETWORK)
    after = resolver.stat()  # in which the time of reading may be another
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    space.configure(evolve(NETWORK, dns=["9.9.9.9"]))
    assert resolver.read_text() == "nameserver 9.9.9.9\n"
    assert [path.name for path in resolver.parent.iterdir()] == ["resolv.conf"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mac", text) for text in ("", "52:54:00:00:00", "52-54-00-00-00-01", "5:4:0:0:0:1")),
        *(("mac", text) for text in ("52:54:00:00:00:01\n", "00:00:00:00:00:00", "g2" * 6)),
        ("mac", "53:54:00:00:00:01"),  # a group's
        *(("address", text) for text in ("", "10.20.1.7", "10.20.1.300/24", "10.20.1.7/24 ")),
        *(("address", text) for text in ("10.20.1.7/0", "10.20.1.7/024", "10.20.1.7/33")),
        *(("address", text) for text in ("10.20.1.7/31", "10.20.1/24", "010.20.1.7/24")),
        *(("address", text) for text in ("10.20.1.0/24", "10.20.1.255/24", "2001:db8::7/64")),
        *(("address", text) for text in ("127.0.0.1/8", "224.0.0.7/24", "0.0.0.7/24")),
        *(("gateway", text) for text in ("", "x\nlink delete", "10.20.2.1", "10.20.1.7")),
        *(("gateway", text) for text in ("10.20.1.1/24", "fe80::1", "\0")),
        *(("dns", [text]) for text in ("", "x\ny", "10.20.1.1\nnameserver 6.6.6.6", "fe80::1%2")),
        *(("dns", [text]) for text in ("10.20.1", "\N{ARABIC-INDIC DIGIT ONE}.1.1.1", "a\0:")),
    ],
)
def test_what_is_no_address(space: NameSpace, field: str, value: object) -> None:
    """Text that is no address is refused before anything is changed."""
    space.configure(OTHER)
    before = space.link(), space.routes()
    with pytest.raises(InvalidParamsError, match="network: "):
        space.configure(evolve(NETWORK, **{field: value}))
    assert (space.link(), space.routes()) == before
    assert not (space.root / "etc/resolv.conf").exists()


def test_no_device(space: NameSpace) -> None:
    """A machine without a network device says so."""
    (space.root / "sys/class/net/nic1/device").rmdir()
    with pytest.raises(NotFoundError, match="no network device"):
        space.configure(NETWORK)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone", "gone: the kernel cannot set its MAC address: No such device"),
        ("lo", "lo: the kernel cannot set its MAC address: "),
    ],
)
def test_the_kernel_refuses(space: NameSpace, name: str, words: str) -> None:
    """What the kernel refuses is said in its own words, and no socket is left open."""
    (space.root / "sys/class/net" / name / "device").mkdir(parents=True)
    (space.root / "sys/class/net/nic1/device").rmdir()
    gc.collect()  # what former tests have dropped may hold descriptors until then
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with pytest.raises(GuestError, match=words):
        space.configure(NETWORK)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_remembered(space: NameSpace) -> None:
    """Name servers that somebody chose in the guest stay, until the network has others."""
    networks = space.networks()
    space.do(lambda: networks.configure(NETWORK))
    path = space.root / "etc/resolv.conf"
    path.write_text("nameserver 9.9.9.9\n")
    space.do(lambda: networks.configure(evolve(NETWORK, address="10.20.1.9/24")))
    assert path.read_text() == "nameserver 9.9.9.9\n"
    space.do(lambda: networks.configure(evolve(NETWORK, dns=["10.20.1.2"])))
    assert path.read_text() == "nameserver 10.20.1.2\n"


def test_renamed(space: NameSpace) -> None:
    """An interface that was renamed is refused once, and then found."""
    networks = space.networks()
    space.do(lambda: networks.configure(NETWORK))
    space.ip("link set nic1 down")
    space.ip("link set nic1 name other1")
    (space.root / "sys/class/net/nic1").rename(space.root / "sys/class/net/other1")
    with pytest.raises(GuestError, match="nic1"):
        space.do(lambda: networks.configure(NETWORK))
    space.do(lambda: networks.configure(NETWORK))
    assert space.ip("-4 address show dev other1")[0]["addr_info"][0]["local"] == "10.20.1.7"
