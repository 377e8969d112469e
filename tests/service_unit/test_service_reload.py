"""Settings that are read again while the daemon runs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from attrs import evolve
from real_daemon import running_daemon, wait_until, write_config

from arrakis import SandboxManager
from arrakisd.settings.config import Config
from arrakisd.settings.network import NetworkConfig
from arrakisd.upkeep.reload import take_over


def test_taken_over() -> None:
    """What machines to come look up changes; what is in use stays, and is named."""
    current = Config(vcpus=1, network=NetworkConfig(bridge="one0"))
    wanted = Config(vcpus=3, vmm_user="else", network=NetworkConfig(bridge="two0", mbit=5))
    reload = take_over(current, wanted)
    network = evolve(current.network, mbit=5)
    assert reload.config == evolve(current, vcpus=3, network=network)
    assert reload.changed == {"vcpus": 3, "network.mbit": 5}
    assert sorted(reload.needs_restart) == ["network.bridge", "vmm_user"]


def test_nothing_changed() -> None:
    """Settings that are the same change nothing."""
    reload = take_over(Config(), Config())
    assert (reload.changed, reload.needs_restart) == ({}, [])


def test_user_network() -> None:
    """In network mode "user", what guests may reach is as it was at the start."""
    current = Config(network=NetworkConfig(mode="user"))
    wanted = Config(network=NetworkConfig(mode="bridge", egress="internet", mbit=5))
    reload = take_over(current, wanted)
    assert reload.config == current
    assert set(reload.needs_restart) == {"network.mode", "network.egress", "network.mbit"}


@pytest.mark.vm
def test_signal(template_state: Path) -> None:
    """On SIGHUP a machine that runs is not disturbed, the next has the new settings."""
    config = write_config(template_state, "log_level = 'info'")
    with (
        running_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        before = manager.start_sandbox("before")
        write_config(template_state, "log_level = 'debug'", 'port_forwards = [{ports = "99"}]')
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "settings were read again" in daemon.log_text(), 10)
        assert before.run_cmd("echo fine")["output"] == "fine\n"
        after = manager.start_sandbox("after")
        assert [one["guest_port"] for one in after.info()["port_forwards"]] == ["99"]
        assert '"level": "debug"' in daemon.log_text()
        config.write_text("nonsense = 1")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not valid" in daemon.log_text(), 10)
        assert manager.health().status == "healthy"
        manager.destroy_all()
