"""The service as an administrator meets it: installed, under a systemd, used by its users."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from container import Container
from real_daemon import wait_until

pytestmark = pytest.mark.vm

_DEADLINE = 60.0
_START = """
from arrakis import SandboxManager
with SandboxManager() as manager:
    sandbox = manager.start_sandbox({name!r})
    print(sandbox.run_cmd("id -un")["output"].strip())
"""


@pytest.fixture
def service(installed: Container) -> Iterator[Container]:
    """The installed service, running; its machines are gone afterwards."""
    arrakis(installed, "list")
    yield installed
    arrakis(installed, "destroy-all")


def arrakis(container: Container, *arguments: str) -> str:
    """Use the command line as a member of the group."""
    return container.output("arrakis", *arguments, user="member")


def start(container: Container, name: str) -> None:
    """Start a machine with the SDK as a member of the group."""
    assert container.python(_START.format(name=name), "member") == "root"


def machines(container: Container) -> set[str]:
    return {one["name"] for one in json.loads(arrakis(container, "list", "--json"))}


def states(container: Container) -> dict[str, str]:
    return {one["name"]: one["status"] for one in json.loads(arrakis(container, "list", "--json"))}


def vmms(container: Container) -> set[str]:
    """Pids of all hypervisors, those that stand by included."""
    return set(container.output("sh", "-c", "grep -l qemu /proc/[0-9]*/comm", check=False).split())


def is_standby(name: str) -> bool:
    """Whether a directory belongs to a hypervisor that stands by, and to no machine yet."""
    return re.fullmatch(r"[0-9a-f]{32}", name) is not None


def traces(container: Container) -> dict[str, str]:
    """What a machine takes of the host, besides its process."""
    directories = (container.state / "vms").iterdir()
    return {
        "rules": container.output("nft", "--terse", "list", "ruleset"),
        "mounts": container.output("sh", "-c", "grep -c . /proc/mounts"),
        "machines": " ".join(sorted(one.name for one in directories if not is_standby(one.name))),
    }


def test_first_call(installed: Container) -> None:
    """The first call of a member of the group starts the daemon, which runs machines for it."""
    installed.run("systemctl", "stop", "arrakisd.service")
    assert installed.property("ActiveState", "arrakisd.socket") == "active"
    assert machines(installed) == set()
    wait_until(lambda: installed.property("ActiveState") == "active", _DEADLINE)
    start(installed, "first")
    assert machines(installed) == {"first"}
    arrakis(installed, "destroy", "first")


def test_stranger(service: Container) -> None:
    """Who is not in the group is refused, and told what to do."""
    refused = service.run("arrakis", "list", user="stranger", check=False)
    assert refused.returncode != 0
    assert "arrakis" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "group" in refused.stderr


def test_journal(service: Container) -> None:
    """An entry of the journal has machine and call as fields, and a message to read."""
    start(service, "noted")
    entries = service.journal("ARRAKIS_VM=noted")
    started = [one for one in entries if one["MESSAGE"].startswith("VM started")]
    assert started
    request_id = started[-1]["ARRAKIS_REQUEST_ID"]
    calls = service.journal(f"ARRAKIS_REQUEST_ID={request_id}")
    assert "vm.start" in {one.get("ARRAKIS_METHOD") for one in calls}
    assert all(one["SYSLOG_IDENTIFIER"] == "arrakisd" for one in calls)
    assert started[-1]["PRIORITY"] == "6"


def test_killed(service: Container) -> None:
    """A killed daemon is started again; of its machines nothing is left but snapshots."""
    wait_until(lambda: service.property("ActiveState") == "active", _DEADLINE)
    before, restarts = traces(service), int(service.property("NRestarts"))
    start(service, "doomed")
    arrakis(service, "run", "doomed", "-c", "echo kept > /root/mark")
    arrakis(service, "snapshot", "doomed", "--snapshot", "survivor")
    assert traces(service) != before
    doomed = vmms(service)
    assert doomed
    service.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "arrakisd")
    wait_until(lambda: int(service.property("NRestarts")) > restarts, _DEADLINE)
    wait_until(lambda: service.property("ActiveState") == "active", _DEADLINE)
    assert machines(service) == set()
    assert traces(service) == before
    assert not doomed & vmms(service)
    arrakis(service, "restore", "again", "--snapshot", "survivor")
    assert arrakis(service, "exec", "again", "--", "cat", "/root/mark") == "kept"
    arrakis(service, "snapshot-delete", "survivor")


def test_stuck(service: Container) -> None:
    """A daemon that stands still is noticed by the watchdog, ended, and started again."""
    dropin = "/run/systemd/system/arrakisd.service.d/impatient.conf"
    service.write(dropin, "[Service]\nWatchdogSec=15\nTimeoutAbortSec=1\n")
    service.run("systemctl", "daemon-reload")
    try:
        service.run("systemctl", "restart", "arrakisd.service")
        pid, restarts = service.property("MainPID"), int(service.property("NRestarts"))
        service.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "arrakisd")
        wait_until(lambda: int(service.property("NRestarts")) > restarts, _DEADLINE)
        wait_until(lambda: service.property("ActiveState") == "active", _DEADLINE)
        assert service.property("MainPID") != pid
    finally:
        service.run("rm", dropin)
        service.run("systemctl", "daemon-reload")
        service.run("systemctl", "restart", "arrakisd.service")


def test_reload(service: Container) -> None:
    """A reload takes over what can change while machines run, and names what cannot."""
    start(service, "undisturbed")
    former = service.output("cat", "/etc/arrakis/arrakisd.toml")
    try:
        settings = "memory_mib = 384\nvmm_user = 'nobody'\n"
        service.write("/etc/arrakis/arrakisd.toml", settings)
        service.run("systemctl", "reload", "arrakisd")
        wait_until(lambda: service.journal('ARRAKIS_CHANGED={"memory_mib": 384}'), _DEADLINE)
        wait_until(lambda: service.journal('ARRAKIS_NAMES=["vmm_user"]'), _DEADLINE)
        info = json.loads(arrakis(service, "info", "--json"))
        assert info["default_memory_mib"] == 384
        assert machines(service) == {"undisturbed"}
    finally:
        service.write("/etc/arrakis/arrakisd.toml", former)
        service.run("systemctl", "reload", "arrakisd")


def test_restart_that_suspends(service: Container) -> None:
    """With on_shutdown = "suspend", machines come back from a restart with their processes."""
    former = service.output("cat", "/etc/arrakis/arrakisd.toml")
    try:
        service.write("/etc/arrakis/arrakisd.toml", "on_shutdown = 'suspend'\n")
        service.run("systemctl", "reload", "arrakisd")
        wait_until(lambda: service.journal('ARRAKIS_CHANGED={"on_shutdown": "suspend"}'), _DEADLINE)
        start(service, "lasting")
        sleeping = "nohup sleep 1000 >/dev/null 2>&1 & until pgrep -x sleep; do :; done"
        arrakis(service, "run", "lasting", "-c", sleeping)
        before = arrakis(service, "exec", "lasting", "--", "pgrep", "-x", "sleep")
        service.run("systemctl", "restart", "arrakisd.service")
        wait_until(lambda: states(service) == {"lasting": "RUNNING"}, _DEADLINE)
        assert arrakis(service, "exec", "lasting", "--", "pgrep", "-x", "sleep") == before
    finally:
        service.write("/etc/arrakis/arrakisd.toml", former)
        service.run("systemctl", "reload", "arrakisd")


@pytest.mark.slow
def test_image_build(service: Container) -> None:
    """The service is allowed all that the build of an image needs."""
    service.write("/tmp/image/Dockerfile", "FROM base\nRUN touch /mark && chmod u+s /mark\n")
    arrakis(service, "image", "build", "--name", "marked", "/tmp/image")
    arrakis(service, "image", "delete", "marked")


def test_upgrade(service: Container) -> None:
    """To install again replaces the programs, restarts the daemon, and keeps what is stored."""
    service.write("/etc/arrakis/arrakisd.toml", "memory_mib = 1024\n")
    start(service, "earlier")
    arrakis(service, "snapshot", "earlier", "--snapshot", "kept")
    former = service.output("readlink", "/opt/arrakis/current")
    pid = service.property("MainPID")
    service.install()
    releases = service.output("ls", "/opt/arrakis/releases").split()
    assert len(releases) == 1
    assert not former.endswith(releases[0])
    assert service.property("MainPID") != pid
    assert service.output("cat", "/etc/arrakis/arrakisd.toml") == "memory_mib = 1024"
    assert machines(service) == set()
    arrakis(service, "restore", "later", "--snapshot", "kept")
    arrakis(service, "snapshot-delete", "kept")
