"""How long machines may live, and be unused."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest
from in_guest import Background, ask, watching
from real_daemon import Daemon, end_daemon, started_daemon, wait_until, write_config

from arrakis import (
    ArrakisError,
    InvalidParamsError,
    InvalidStateError,
    NotFoundError,
    Sandbox,
    SandboxManager,
)

pytestmark = pytest.mark.vm

IDLE = 1.5
CONNECT = "import socket; socket.create_connection(('127.0.0.1', 7000))"


def status(sandbox: Sandbox) -> str:
    return str(sandbox.info()["status"])


def wait_suspended(sandbox: Sandbox) -> None:
    wait_until(lambda: status(sandbox) == "SUSPENDED", 20)


def test_limits_are_told(manager: SandboxManager) -> None:
    """Info has the limits and when they end; each can be changed and lifted by itself."""
    with manager.start_sandbox("box", ttl=1000, idle_timeout=500) as sandbox:
        told = sandbox.info()["limits"]
        assert (told["ttl"], told["idle_timeout"], told["on_timeout"]) == (1000, 500, "suspend")
        assert 0 < told["ends"] - time.time() <= 500
        sandbox.set_limits(idle_timeout=0, on_timeout="destroy")
        told = sandbox.info()["limits"]
        assert (told["ttl"], told["idle_timeout"], told["on_timeout"]) == (1000, None, "destroy")
        assert 500 < told["ends"] - time.time() <= 1000
        (fork,) = sandbox.fork()
        assert fork.info()["limits"]["on_timeout"] == "destroy"
        sandbox.set_limits(ttl=0)
        assert sandbox.info()["limits"] is None
        with pytest.raises(InvalidParamsError):
            sandbox.set_limits(ttl=-1)


def test_idle(manager: SandboxManager, daemon: Daemon) -> None:
    """Who looks at a machine does not use it; it is suspended, and counts anew when it is back."""
    with watching(manager) as watch, manager.start_sandbox("box", idle_timeout=IDLE) as sandbox:
        wait_suspended(sandbox)
        wait_until(lambda: daemon.vmm_pids() == set(), 10)
        (told,) = [one for one in watch.until("vm.suspended", "box") if one["data"].get("reason")]
        assert "nobody has used it" in told["data"]["reason"]
        assert sandbox.info()["limits"]["ends"] is None
        sandbox.set_limits(idle_timeout=5 * IDLE)  # a busy host takes long to ask
        sandbox.resume()
        assert ask(sandbox, "echo fine") == "fine"
        wait_suspended(sandbox)


def test_use(manager: SandboxManager) -> None:
    """A command that somebody waits for, and a forwarded connection, keep a machine awake."""
    with manager.start_sandbox("box", ports=[7000]) as sandbox:
        sandbox.run_cmd("python3 -m http.server 7000", blocking=False)
        wait_until(lambda: sandbox.run(["python3", "-c", CONNECT]).ok, 20)
        port = int(sandbox.info()["port_forwards"][0]["host_port"])
        with sandbox.exec("sleep 1000"):
            sandbox.set_limits(idle_timeout=IDLE)  # only now, as a busy host takes long
            time.sleep(2 * IDLE)
            assert status(sandbox) == "RUNNING"
            connection = socket.create_connection(("127.0.0.1", port))
        with connection:
            time.sleep(2 * IDLE)
            assert status(sandbox) == "RUNNING"
        wait_suspended(sandbox)


def test_busy_client_loses_nothing(manager: SandboxManager) -> None:
    """Calls that come just when the time is up are done, or refused before they have begun."""
    with manager.start_sandbox("box") as sandbox:
        sandbox.run("rm -f /root/log", check=True)
        sandbox.set_limits(idle_timeout=0.3)
        done = 0
        for number in range(12):
            try:
                sandbox.run(f"echo {number} >> /root/log", check=True)
                done += 1
            except InvalidStateError:
                wait_suspended(sandbox)
                sandbox.resume()
            time.sleep(0.25 + number % 4 * 0.05)
        sandbox.set_limits(idle_timeout=0)
        if status(sandbox) != "RUNNING":
            wait_suspended(sandbox)
            sandbox.resume()
        assert len(ask(sandbox, "cat /root/log").splitlines()) == done


@pytest.mark.parametrize("action", ["stop", "destroy"])
def test_time_to_live(manager: SandboxManager, action: str) -> None:
    """When its time is over a machine is stopped or destroyed, whoever uses it, with a reason."""
    with watching(manager) as watch:
        sandbox = manager.start_sandbox("box", ttl=1.5, on_timeout=action)
        call = Background(lambda: sandbox.run("sleep 1000"))
        (told,) = [one for one in watch.until("vm.stopped", "box") if one["kind"] == "vm.stopped"]
        assert "time to live" in told["data"]["reason"]
        with pytest.raises(ArrakisError):
            call.wait(10)
        if action == "destroy":
            watch.until("vm.destroyed", "box")
            with pytest.raises(NotFoundError):
                sandbox.info()
        else:
            wait_until(lambda: status(sandbox) == "STOPPED", 10)
            assert sandbox.info()["failure"] is None


def test_defaults(template_state: Path) -> None:
    """The daemon's settings hold for machines that do not say, and survive its end with them."""
    config = write_config(template_state, "idle_timeout = 500\non_timeout = 'stop'")
    with (
        started_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        usual = manager.start_sandbox("usual").info()["limits"]
        assert (usual["ttl"], usual["idle_timeout"], usual["on_timeout"]) == (None, 500, "stop")
        other = manager.start_sandbox("other", idle_timeout=0)
        assert other.info()["limits"] is None
        other.set_limits(ttl=700, on_timeout="suspend")
        other.suspend()
        daemon.process.kill()
        daemon.process.wait()
    with (
        started_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        other = manager.get("other")
        assert other.info()["limits"] == {
            "ttl": 700,
            "idle_timeout": None,
            "on_timeout": "suspend",
            "on_unresponsive": "leave",
            "ends": None,
        }
        other.resume()
        assert other.info()["limits"]["ends"] - time.time() > 600
        other.destroy()
        with contextlib.suppress(NotFoundError):
            manager.get("usual")
            pytest.fail("it ran, and is gone with the daemon")
        end_daemon(daemon, 15)
