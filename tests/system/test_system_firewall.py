"""The packet filter while VMs run: what somebody flushes comes back."""

from __future__ import annotations

import re
import signal
import time

import pytest
from real_daemon import Daemon, wait_until

from arrakis import SandboxManager

pytestmark = pytest.mark.vm

# Chosen anew whenever a policy is written down.
_MARKS = re.compile(r"mark (set )?0x[0-9a-f]+")
_RETURN_DEADLINE = 10.0


def rules(daemon: Daemon) -> str:
    """All rules in the daemon's namespace, but for marks."""
    return _MARKS.sub("mark", daemon.inside("nft", "list", "ruleset"))


def test_flushed(manager: SandboxManager, daemon: Daemon) -> None:
    """Flushed rules come back as they were, with every VM's policy and published port."""
    with manager.start_sandbox("a", egress=["*.example.com:443", "93.184.0.0/16"]) as sandbox:
        sandbox.ports.add(22, publish=True)
        before = rules(daemon)
        assert "93.184.0.0/16" in before
        daemon.process.send_signal(signal.SIGSTOP)  # else it may be quicker than the look
        try:
            daemon.inside("nft", "flush", "ruleset")
            assert rules(daemon) == ""
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        wait_until(lambda: rules(daemon) == before, _RETURN_DEADLINE)


def test_ended_without_rules(manager: SandboxManager, daemon: Daemon) -> None:
    """A VM that ends while the rules are gone ends cleanly, and does not come back with them."""
    sandbox = manager.start_sandbox("b")
    address = sandbox.info()["ip"].partition("/")[0]
    assert address in rules(daemon)
    daemon.inside("nft", "flush", "ruleset")
    sandbox.destroy()
    wait_until(lambda: "table inet" in rules(daemon), _RETURN_DEADLINE)
    assert address not in rules(daemon)


def test_one_table(manager: SandboxManager, daemon: Daemon) -> None:
    """Either of the two tables is missed; while nothing is missing nothing is changed."""
    before = daemon.inside("nft", "-a", "list", "ruleset")
    time.sleep(3)
    assert daemon.inside("nft", "-a", "list", "ruleset") == before
    for family in ("inet", "bridge"):
        table = re.search(rf"table {family} (\w+)", before)
        assert table is not None
        daemon.inside("nft", "delete", "table", family, table[1])
        wait_until(lambda: rules(daemon) == _MARKS.sub("mark", stripped(before)), _RETURN_DEADLINE)


def stripped(listing: str) -> str:
    """A listing without handles."""
    return re.sub(r" # handle \d+", "", listing)
