"""Ports of the host that lead into guests, by loopback and from outside, under load and failure."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
from guest_network import start
from in_guest import Background
from internet import DAEMON_SIDE, OUTSIDE, Internet, internet, ip
from real_daemon import Daemon, namespace_of, wait_until

from arrakis import AlreadyExistsError, Sandbox, SandboxManager

pytestmark = pytest.mark.vm

MIB = 2**20
BLOCK = 64 * 1024
PORT = 7001
LOOPBACK = "127.0.0.1"

# What it is to do stands in the first line: take all that comes, and tell its length and
# checksum; send blocks that are all different; end its own sending first; or echo.
SERVER = """
import socket, struct, threading, zlib
def take(stream):
    size = check = 0
    while data := stream.read1(65536):
        size, check = size + len(data), zlib.crc32(data, check)
    return f"{size} {check}".encode()
def serve(connection, peer):
    stream = connection.makefile("rb")
    what, _, size = stream.readline().decode().strip().partition(" ")
    if what == "up":
        connection.sendall(take(stream))
    elif what == "down":
        for number in range(int(size) // 65536):
            connection.sendall(struct.pack(">Q", number) * 8192)
    elif what == "early":
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        with open("/tmp/server_files/early", "wb") as file:
            file.write(take(stream))
    elif what == "who":
        connection.sendall(peer[0].encode())
    else:
        while data := stream.read1(65536):
            connection.sendall(data)
    stream.close()
    connection.close()
listening = socket.create_server(("0.0.0.0", 7001), backlog=256)
open("/tmp/server_files/serves", "w").close()
while True:
    threading.Thread(target=serve, args=listening.accept()).start()
"""

GREET_ONCE = """
import socket
listening = socket.create_server(("", 7002))
open("/tmp/server_files/on", "w").close()
listening.accept()[0].send(b"hi")
"""

Connect = Callable[[], socket.socket]


@pytest.fixture(scope="module")
def world(daemon: Daemon) -> Iterator[Internet]:
    """The internet, and a client in it."""
    with internet(namespace_of(daemon.state)) as connected:
        yield connected


@pytest.fixture
def sandbox(manager: SandboxManager) -> Iterator[Sandbox]:
    """A sandbox with a server that is reached by loopback and from outside."""
    ports = [{"guest_port": PORT, "publish": True}, {"guest_port": 7002}]
    sandbox = start(manager, "server", ports=ports)
    serve(sandbox)
    yield sandbox
    manager.destroy_all()


def serve(sandbox: Sandbox) -> None:
    sandbox.exec(["python3", "-S", "-c", SERVER], background=True).wait()
    wait_until(lambda: sandbox.files.exists("serves"), 20)


def host_port(sandbox: Sandbox, guest_port: int = PORT) -> int:
    """The port of the host that leads to one of a guest."""
    ports = {one["guest_port"]: one["host_port"] for one in sandbox.info()["port_forwards"]}
    return int(ports[str(guest_port)])


@pytest.fixture(params=["loopback", "outside"])
def connect(request: pytest.FixtureRequest, sandbox: Sandbox, world: Internet) -> Connect:
    """Connects to the server, from either side."""
    port = host_port(sandbox)
    if request.param == "loopback":
        return lambda: socket.create_connection((LOOPBACK, port), timeout=20)
    return lambda: world.connect(world.outside, DAEMON_SIDE, port)


def read_all(client: socket.socket) -> bytes:
    """Read to the end."""
    found = bytearray()
    while data := client.recv(BLOCK):
        found += data
    return bytes(found)


def blocks(size: int) -> Iterator[bytes]:
    """The blocks that the server sends."""
    for number in range(size // BLOCK):
        yield number.to_bytes(8, "big") * (BLOCK // 8)


SIZES = [
    pytest.param(32 * MIB, id="32MiB"),
    pytest.param(1024 * MIB, id="1GiB", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("size", SIZES)
def test_down(connect: Connect, size: int) -> None:
    """What a guest sends arrives whole, and in bounded time."""
    expected = received = check = 0
    for block in blocks(size):
        expected = zlib.crc32(block, expected)
    with connect() as client:
        client.sendall(f"down {size}\n".encode())
        began = time.monotonic()
        while data := client.recv(16 * BLOCK):
            received, check = received + len(data), zlib.crc32(data, check)
    print(f"down: {size / MIB / (time.monotonic() - began):.0f} MiB/s")
    assert (received, check) == (size, expected)


@pytest.mark.parametrize("size", SIZES)
def test_up(connect: Connect, size: int) -> None:
    """What a guest is sent arrives whole; it answers after the sender has ended its side."""
    check = 0
    with connect() as client:
        client.settimeout(60)
        client.sendall(b"up\n")
        began = time.monotonic()
        for block in blocks(size):
            check = zlib.crc32(block, check)
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    print(f"up: {size / MIB / (time.monotonic() - began):.0f} MiB/s")
    assert answer == f"{size} {check}".encode()


def test_guest_ends_its_side_first(connect: Connect, sandbox: Sandbox) -> None:
    """A guest that has said all can still be told the rest."""
    data = b"after the end" * 100_000
    with connect() as client:
        client.sendall(b"early\n")
        assert read_all(client) == b"bye"
        client.sendall(data)
    expected = f"{len(data)} {zlib.crc32(data)}"
    wait_until(lambda: sandbox.files.exists("early"), 10)
    wait_until(lambda: sandbox.files.read_text("early") == expected, 10)


def test_who(sandbox: Sandbox, world: Internet) -> None:
    """The guest sees the true address of who comes from outside."""
    with world.connect(world.outside, DAEMON_SIDE, host_port(sandbox)) as client:
        client.sendall(b"who\n")
        assert read_all(client) == OUTSIDE.encode()


def test_many_at_once(connect: Connect) -> None:
    """A hundred and fifty connections are served at the same time, each with its own bytes."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect()) for _ in range(150)]
        waiting = {client: f"I am {n}, ".encode() * 50 for n, client in enumerate(clients)}
        selector = stack.enter_context(selectors.DefaultSelector())
        for client, text in waiting.items():
            client.sendall(b"echo\n" + text)
            selector.register(client, selectors.EVENT_READ)
        while waiting:
            ready = selector.select(20)
            assert ready
            for key, _ in ready:
                client = key.fileobj
                assert isinstance(client, socket.socket)
                data = client.recv(BLOCK)
                assert data
                assert waiting[client].startswith(data)
                waiting[client] = waiting[client][len(data) :]
                if not waiting[client]:
                    del waiting[client]
                    selector.unregister(client)


def test_nobody_listens(sandbox: Sandbox) -> None:
    """Where nobody listens in the guest, a connection is reset at once, and the next one tried."""
    address = (LOOPBACK, host_port(sandbox, 7002))

    def refused() -> float:
        began = time.monotonic()
        with (
            socket.create_connection(address, timeout=60) as client,
            pytest.raises(ConnectionResetError),
        ):
            read_all(client)
        return time.monotonic() - began

    assert min(refused() for _ in range(3)) < 2  # a busy host delays one or another
    sandbox.exec(["python3", "-S", "-c", GREET_ONCE], background=True).wait()
    wait_until(lambda: sandbox.files.exists("on"), 10)
    with socket.create_connection(address, timeout=60) as client:
        assert read_all(client) == b"hi"


def test_unpublished(sandbox: Sandbox, world: Internet) -> None:
    """From outside, neither ports that are not published are reached, nor guests themselves."""
    address = sandbox.info()["ip"].partition("/")[0]
    ip("-n", world.world, "route", "add", "10.20.1.0/24", "via", DAEMON_SIDE)
    with world.connect(world.outside, DAEMON_SIDE, host_port(sandbox)) as control:
        assert control.getpeername()
    for target in ((address, PORT), (DAEMON_SIDE, host_port(sandbox, 7002)), (DAEMON_SIDE, PORT)):
        with pytest.raises(OSError):
            world.connect(world.outside, *target, timeout=1)


def test_destroyed_with_open_connections(
    manager: SandboxManager, sandbox: Sandbox, connect: Connect
) -> None:
    """When a VM is destroyed, its connections by loopback break, and its port is free at once."""
    port = host_port(sandbox)
    address = (LOOPBACK, port)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address, 60)) for _ in range(20)]
        for client in clients:
            client.sendall(b"down 1073741824\n")
            assert client.recv(100)
        outside = stack.enter_context(connect())
        outside.sendall(b"echo\nx")
        assert outside.recv(1)
        sandbox.destroy()
        with socket.create_server(address):
            pass
        for client in clients:
            with pytest.raises(ConnectionResetError):  # and not as if all had been sent
                read_all(client)
    with start(manager, "next", ports=[{"guest_port": PORT, "host_port": port}]) as following:
        serve(following)
        with socket.create_connection(address, timeout=60) as client:
            client.sendall(b"echo\nx")
            assert client.recv(1) == b"x"


def test_removed_with_open_connections(
    manager: SandboxManager, sandbox: Sandbox, connect: Connect
) -> None:
    """When a port is removed, what is connected through it is cut, from outside too."""
    with connect() as client:
        client.sendall(b"echo\nx")
        assert client.recv(1) == b"x"
        removal = {"vm": sandbox.name, "host_port": host_port(sandbox)}
        manager._client.call("port.remove", removal)
        client.settimeout(1)
        assert not answers(client)
        with pytest.raises(OSError):
            connect()


def answers(client: socket.socket) -> bool:
    """Whether a connection to an echo still carries anything."""
    try:
        client.sendall(b"y")
        return client.recv(1) != b""
    except OSError:
        return False


def test_taken_port(manager: SandboxManager, sandbox: Sandbox) -> None:
    """A port that somebody has, on the host or another VM, is refused by its number."""
    with socket.create_server((LOOPBACK, 0)) as server:
        taken = server.getsockname()[1]
        for port in (taken, host_port(sandbox)):
            with pytest.raises(AlreadyExistsError, match=str(port)):
                start(manager, "late", ports=[{"guest_port": PORT, "host_port": port}])
    assert [vm.name for vm in manager.list_all()] == ["server"]


def test_ports_by_many_at_once(manager: SandboxManager, sandbox: Sandbox) -> None:
    """Ports that are asked for at the same time are all different."""
    before, port = host_port(sandbox), {"guest_port": PORT}
    call = {"vm": sandbox.name, "port": port}
    calls = [Background(lambda: manager._client.call("port.add", call)) for _ in range(10)]
    assert len({before, *(one.wait().host_port for one in calls)}) == 11
