"""A daemon without any rights: machines behind the hypervisor's own network stack."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_daemon import Daemon, passable_directory, refused_daemon, running_daemon

from arrakis import AlreadyExistsError, Sandbox, SandboxManager, UnsupportedError

pytestmark = pytest.mark.vm

# In a user namespace it is user 1000 and has no capability, but may read what its maker may.
_ORDINARY = ("unshare", "--user", "--map-user=1000", "--map-group=1000")

SERVE = """
cd /tmp
echo here > index.html
setsid python3 -m http.server 5901 >/dev/null 2>&1 &
until curl -s http://127.0.0.1:5901/ >/dev/null; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Daemon]:
    """A daemon of an ordinary user."""
    with passable_directory() as directory:
        config = directory / "arrakisd.toml"
        config.write_text('socket_group = "of-nobody"\n[network]\nmode = "user"\n')
        with running_daemon(directory / "state", f"--config={config}", prefix=_ORDINARY) as running:
            yield running


@pytest.fixture(scope="module")
def users(ordinary: Daemon) -> Iterator[SandboxManager]:
    """A client of it."""
    with SandboxManager(socket=ordinary.socket) as manager:
        manager.templates.build()
        yield manager
        manager.destroy_all()


@pytest.fixture
def server(users: SandboxManager) -> Iterator[Sandbox]:
    """A machine with a web server on port 5901, which is forwarded."""
    with users.start_sandbox("server") as sandbox:
        sandbox.run(SERVE, check=True)
        yield sandbox


def fetched(host_port: int) -> str:
    """Get the page behind a port of this host."""
    with urllib.request.urlopen(f"http://127.0.0.1:{host_port}/", timeout=20) as answer:
        return str(answer.read().decode())


def gui(sandbox: Sandbox) -> int:
    """The host's port for 5901."""
    (port,) = [one.host_port for one in sandbox.ports.list() if one.guest_port == 5901]
    return port


def test_no_rights(ordinary: Daemon) -> None:
    """The daemon of these tests really has no capability, and is not root."""
    status = Path(f"/proc/{ordinary.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status


def test_forwards(server: Sandbox) -> None:
    """Default ports lead into the guest, and so do those added later, until they are removed."""
    assert fetched(gui(server)) == "here\n"
    added = server.ports.add(5901)
    assert fetched(added.host_port) == "here\n"
    server.ports.remove(added.host_port)
    with pytest.raises(OSError, match="refused"):
        fetched(added.host_port)
    assert fetched(gui(server)) == "here\n"


def test_port_in_use(server: Sandbox) -> None:
    """A port of the host that somebody else has is refused, and nothing is lost."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(AlreadyExistsError, match=str(port)):
            server.ports.add(5901, host_port=port)
    assert fetched(server.ports.add(5901, host_port=port).host_port) == "here\n"


def test_time_travel(server: Sandbox, users: SandboxManager) -> None:
    """Restores and forks have the process, and ports of their own that lead to it."""
    with users.restore("again", server.snapshot("served")) as restored:
        (fork,) = restored.fork(1)
        ports = {gui(one) for one in (server, restored, fork)}
        assert len(ports) == 3
        assert {fetched(port) for port in ports} == {"here\n"}
        fork.destroy()
    users.snapshots.delete("served")


def test_nothing_out(server: Sandbox) -> None:
    """A guest reaches neither this host's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        tried = server.run(["curl", "-sS", "-m", "60", f"http://10.0.2.2:{port}/"])
        assert tried.exit_code == 7
        listening.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_no_choice(server: Sandbox, users: SandboxManager) -> None:
    """A policy that cannot be enforced is refused, at the start and later, with what to do."""
    with pytest.raises(UnsupportedError) as caught:
        server.set_egress("internet")
    assert 'mode = "bridge"' in str(caught.value.hint)
    with pytest.raises(UnsupportedError, match="cannot be chosen"):
        users.start_sandbox("free", egress=["example.com"])
    assert [one.name for one in users.list_all()] == ["server"]


def test_bridge_refused(tmp_path: Path) -> None:
    """Without the rights for a bridge the daemon says so, and names the mode that needs none."""
    (tmp_path / "empty").write_text("")
    flags = (f"--config={tmp_path}/empty", f"--state={tmp_path}/s", f"--socket={tmp_path}/x")
    assert 'mode = "user"' in refused_daemon(tmp_path, *flags, prefix=_ORDINARY)
