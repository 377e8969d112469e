"""Ports of the host that lead into guests, and policies, as their users see them."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from in_guest import ask
from real_daemon import wait_until

from arrakis import (
    AlreadyExistsError,
    InvalidParamsError,
    InvalidStateError,
    NotFoundError,
    PortRequest,
    Sandbox,
    SandboxManager,
)

pytestmark = pytest.mark.vm

LOOPBACK = "127.0.0.1"


def serve(sandbox: Sandbox) -> None:
    """Have a guest serve a file that names the sandbox, at port 8000."""
    sandbox.files.write("site/who", sandbox.name)
    serving = ["python3", "-S", "-m", "http.server", "8000", "--directory", "site"]
    sandbox.exec(serving, background=True).wait()
    wait_until(lambda: ":8000 " in ask(sandbox, "ss -Hltn"), 30)


def fetch(host_port: int) -> str:
    """Fetch that file through a port of the host."""
    with urllib.request.urlopen(f"http://{LOOPBACK}:{host_port}/who", timeout=20) as answer:
        return str(answer.read().decode())


def test_port_of_a_running_sandbox(manager: SandboxManager) -> None:
    """A port that is added leads into the guest at once, and when it is removed nowhere."""
    with manager.start_sandbox("web", ports=[]) as web:
        assert "port_forwards" not in web.info()
        serve(web)
        added = web.ports.add(8000, description="files")
        assert web.ports.list() == [added]
        assert web.info()["port_forwards"] == [
            {"host_port": str(added.host_port), "guest_port": "8000", "description": "files"}
        ]
        assert fetch(added.host_port) == "web"
        again = web.ports.add(8000)
        assert fetch(again.host_port) == "web"
        web.ports.remove(added.host_port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, added.host_port), 5)
        assert fetch(again.host_port) == "web"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, again.host_port), 5)


def test_ports_of_copies_are_their_own(manager: SandboxManager) -> None:
    """What is restored or forked has the same guest ports, at other ports of the host."""
    with manager.start_sandbox("web", ports=[PortRequest(8000, description="files")]) as web:
        serve(web)
        snapshot = web.snapshot()
        (fork,) = web.fork()
        with fork, manager.restore("restored", snapshot) as restored:
            ports = []
            for copy in (web, fork, restored):
                (forward,) = copy.ports.list()
                assert (forward.guest_port, forward.description) == (8000, "files")
                ports.append(forward.host_port)
            assert len(set(ports)) == 3
            restored.files.write("site/who", "changed")
            assert [fetch(port) for port in ports] == ["web", "web", "changed"]
        with manager.restore("closed", snapshot, egress="none", ports=["8000"]) as closed:
            assert closed.info()["egress"] == {"mode": "none", "allow": []}
            (forward,) = closed.ports.list()
            assert (forward.description, fetch(forward.host_port)) == ("", "web")


def test_wrong_ports_and_policies(manager: SandboxManager) -> None:
    """What cannot be done is told, by what is wrong with it, and changes nothing."""
    with socket.create_server((LOOPBACK, 0)) as other, manager.start_sandbox("box") as box:
        before = box.ports.list()
        usual = [(5901, "gui"), *((port, "code") for port in range(5736, 5741))]
        assert [(one.guest_port, one.description) for one in before] == usual
        taken, foreign = before[0].host_port, other.getsockname()[1]
        with pytest.raises(AlreadyExistsError, match=f"{taken} is that of VM 'box'"):
            box.ports.add(8000, taken)
        with pytest.raises(AlreadyExistsError, match=f"port {foreign} of this host") as caught:
            box.ports.add(8000, foreign)
        assert "choose another" in str(caught.value.hint)
        with pytest.raises(AlreadyExistsError, match=str(foreign)):
            manager.start_sandbox("second", ports=[f"{foreign}:8000"])
        with pytest.raises(NotFoundError, match=f"no forward from port {foreign}"):
            box.ports.remove(foreign)
        with pytest.raises(NotFoundError, match="nobody"):
            Sandbox(box._client, "nobody").ports.list()
        with pytest.raises(InvalidParamsError, match="neither an IPv4 network nor a domain"):
            box.set_egress(["not a target"])
        assert (box.ports.list(), box.info()["egress"]["mode"]) == (before, "internet")
        box.set_egress(["pypi.org:443"])
        assert box.info()["egress"] == {"mode": "allow", "allow": ["pypi.org:443"]}
        box.stop()
        for change in (lambda: box.ports.add(8000), lambda: box.set_egress("none")):
            with pytest.raises(InvalidStateError) as stopped:
                change()
            assert stopped.value.state == "STOPPED"
        assert [one.name for one in manager.list_all()] == ["box"]
