"""The bridge's rules and taps, on a real one in a namespace, without VMs."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from real_daemon import SLACK

from arrakis_rpc.network_api import Egress
from arrakisd.host.net import bridge_network as module
from arrakisd.host.net import taps
from arrakisd.host.net.bridge_network import BridgeNetwork, BridgePlug, bridge_network
from arrakisd.host.net.interface import PlugRequest, TapNic
from arrakisd.host.net.taps import Tap
from arrakisd.settings.network import NetworkConfig

_NAMESPACE = f"arrakis-test-bridge-{os.getpid()}"
_NAMES = Egress("allow", ["example.com:443"])
_CHAIN = "vm_10_20_1_2"


@asynccontextmanager
async def network() -> AsyncIterator[BridgeNetwork]:
    """Set up a bridge of our own."""
    config = NetworkConfig(namespace=_NAMESPACE)
    with tempfile.TemporaryDirectory() as directory:
        async with bridge_network(config, Path(directory), _NAMESPACE) as made:
            yield made


@asynccontextmanager
async def plugged(made: BridgeNetwork, egress: Egress) -> AsyncIterator[BridgePlug]:
    """Connect a machine, whose other end nobody has."""
    request = PlugRequest("box", egress, [], "10.20.1.2", None)
    async with made.card(egress) as nic, made.plug(request) as plug:
        assert isinstance(nic, TapNic)
        await plug.attach(nic, None)  # type: ignore[arg-type]  # no port is to be forwarded
        yield plug


def rules() -> str:
    """All that the packet filter has."""
    argv = ["ip", "netns", "exec", _NAMESPACE, "nft", "list", "ruleset"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def chain(text: str, name: str = _CHAIN) -> list[str]:
    """The rules of one chain."""
    lines = text.partition(f"chain {name} {{\n")[2].partition("}")[0]
    return [line.strip() for line in lines.splitlines() if line.strip()]


async def test_rules_that_were_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a VM is nothing that a later one at its address has, and goes soon."""
    monkeypatch.setattr(module, "_LOOK_AT_RULES", 0.01)
    async with network() as made:
        with monkeypatch.context() as broken:

            async def fail(_: str) -> None:
                raise OSError("no")

            async with plugged(made, Egress("internet")) as plug:
                assert chain(rules()) == ["accept"]
                broken.setattr(made, "_mend_rules", lambda: None)
                broken.setattr(made, "filter", fail)
            assert plug.tap is not None
        monkeypatch.setattr(made, "_mend_rules", lambda: None)
        async with plugged(made, Egress("none")) as later:
            assert later.address.ip == ipaddress.IPv4Address("10.20.1.2")
            assert chain(rules()) == []
        monkeypatch.undo()
        with trio.fail_after(SLACK * 10):
            while _CHAIN in rules():
                await trio.sleep(0.05)
        assert "table inet" in rules()


async def test_policy_that_changes_as_its_vm_ends() -> None:
    """A VM's end waits for what is being changed of its rules, and leaves none of them."""
    async with network() as made:
        async with plugged(made, _NAMES) as plug:
            assert "_target_0" in rules()
            begun, go_on = trio.Event(), trio.Event()
            unhindered = made.filter

            async def slowly(commands: str) -> None:
                begun.set()
                await go_on.wait()
                await unhindered(commands)

            async with trio.open_nursery() as nursery:
                made.filter = slowly  # type: ignore[method-assign]
                nursery.start_soon(plug.change_egress, Egress("internet"))
                await begun.wait()
                made.filter = unhindered  # type: ignore[method-assign]
                nursery.start_soon(plug.close)
                await trio.testing.wait_all_tasks_blocked(0.05)
                go_on.set()
        assert _CHAIN not in rules()
        assert not made.has_stale_rules


async def test_names_and_private_networks() -> None:
    """The owner of an allowed name cannot lead into a network that only the host's owner opens."""
    async with network() as made, plugged(made, _NAMES):
        (leads,) = [line for line in chain(rules()) if "_target_0" in line]
        assert "ip daddr != @exempted" in leads


async def test_taps_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without descriptors for a while costs those who need a tap, and no daemon."""
    monkeypatch.setattr(taps, "_RETRY", 0.01)
    async with network() as made:
        there = made.spare_taps
        with monkeypatch.context() as exhausted:

            def fail(_: str) -> Tap:
                raise OSError(24, "Too many open files")

            exhausted.setattr(taps, "open_tap", fail)
            for _ in range(there):
                (await made.taps.take()).close()
            with pytest.raises(OSError, match="Too many"):
                await made.taps.take()
            await trio.sleep(0.1)
        with trio.fail_after(SLACK * 10):
            while made.spare_taps < there:
                await trio.sleep(0.01)
