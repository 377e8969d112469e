"""Becoming another machine, in a scratch root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import evolve

from arrakis_agent.call import Call
from arrakis_agent.health import HealthReporter
from arrakis_agent.identity import IdentityKeeper
from arrakis_agent.network import Networks
from arrakis_agent.poller import Poller, run
from arrakis_agent.port import Output, Port
from arrakis_rpc.connection import Connection, Role
from arrakis_rpc.errors import InvalidParamsError
from arrakis_rpc.guest_api import Identity, Network, Nothing

IDENTITY = Identity(
    hostname="sibling-2",
    machine_id="0123456789abcdef" * 2,
    entropy=bytes(range(64)),
    ssh_host_key=b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
    ssh_host_key_public=b"ssh-ed25519 AAAA\n",
)


class KernelOnPaper:
    """Notes what would have been done to the kernel."""

    def __init__(self) -> None:
        self.done: list[tuple[str, object]] = []

    def set_hostname(self, name: str) -> None:
        self.done.append(("hostname", name))

    def set_realtime(self, nanoseconds: int) -> None:
        self.done.append(("realtime", nanoseconds))

    def advance_realtime(self, nanoseconds: int) -> None:
        self.done.append(("advance", nanoseconds))

    def add_entropy(self, entropy: bytes) -> None:
        self.done.append(("entropy", entropy))


def make_call(poller: Poller) -> Call:
    return Call(1, Connection(Role.CALLEE), Output(Port(0, poller, reconnects=False)), ())


class Machine:
    """A scratch root, and a kernel on paper."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kernel = KernelOnPaper()
        self.keeper = IdentityKeeper(root, self.kernel, Networks(root))

    def apply(self, identity: Identity) -> None:
        async def main(poller: Poller) -> None:
            assert await self.keeper.apply(make_call(poller), identity) == Nothing()

        run(main)

    def mode(self, path: str) -> int:
        return (self.root / path).stat().st_mode & 0o7777


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for directory in ("etc/ssh", "var/lib/systemd", "var/lib/dbus", "run"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "etc/hostname").write_text("a-much-longer-template-name\n")
    (tmp_path / "etc/hosts").write_text(
        "127.0.0.1\tlocalhost\n127.0.1.1 template\n::1 ip6-localhost # 127.0.1.1\n"
    )
    (tmp_path / "etc/machine-id").write_text("f" * 32 + "\n")
    key = tmp_path / "etc/ssh/ssh_host_ed25519_key"
    key.write_text("a longer key of the template, which must be gone" * 9)
    key.chmod(0o644)
    return Machine(tmp_path)


def test_in_memory(machine: Machine, tmp_path: Path) -> None:
    """The files become links to files in memory, with what they had, and are written there."""
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n10.1.1.1 mine\n")
    machine.keeper.move_to_memory()
    machine.keeper.move_to_memory()
    machine.apply(IDENTITY)
    memory = tmp_path / "run/arrakis/identity"
    for path in ("etc/hosts", "etc/hostname", "etc/machine-id", "etc/ssh/ssh_host_ed25519_key"):
        link = tmp_path / path
        assert link.readlink() == memory / link.name
    assert "10.1.1.1 mine" in (memory / "hosts").read_text()
    assert (memory / "hostname").read_text().strip() == IDENTITY.hostname
    assert (memory / "ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600


def test_edited_meanwhile(machine: Machine, tmp_path: Path) -> None:
    """A link that somebody replaced by a file of his own is written like any file."""
    machine.keeper.move_to_memory()
    (tmp_path / "etc/hosts").unlink()
    (tmp_path / "etc/hosts").write_text("10.1.1.1 mine\n")
    machine.apply(IDENTITY)
    text = (tmp_path / "etc/hosts").read_text()
    assert "10.1.1.1 mine" in text
    assert IDENTITY.hostname in text


def test_asleep(machine: Machine) -> None:
    """A machine that slept has its clock set forward, or back where the host's was."""
    machine.apply(evolve(IDENTITY, asleep=5_000_000_000))
    machine.apply(evolve(IDENTITY, asleep=-7))
    machine.apply(IDENTITY)
    moved = [value for what, value in machine.kernel.done if what == "advance"]
    assert moved == [5_000_000_000, -7]


def test_files(machine: Machine) -> None:
    """Names, machine id and keys are replaced, with modes that keep the private private."""
    machine.apply(IDENTITY)
    etc = machine.root / "etc"
    assert (etc / "hostname").read_text() == "sibling-2\n"
    assert (etc / "hosts").read_text() == (
        "127.0.0.1\tlocalhost\n::1 ip6-localhost # 127.0.1.1\n127.0.1.1\tsibling-2\n"
    )
    assert (etc / "machine-id").read_text() == "0123456789abcdef" * 2 + "\n"
    assert (etc / "ssh/ssh_host_ed25519_key").read_bytes() == IDENTITY.ssh_host_key
    assert (etc / "ssh/ssh_host_ed25519_key.pub").read_bytes() == IDENTITY.ssh_host_key_public
    assert machine.mode("etc/ssh/ssh_host_ed25519_key") == 0o600
    assert machine.mode("etc/ssh/ssh_host_ed25519_key.pub") == 0o644
    assert machine.mode("etc/machine-id") == 0o444
    assert not (machine.root / "run/machine-id").exists()


def test_kernel(machine: Machine) -> None:
    """The random pool is stirred before all else: random bytes are drawn from it."""
    machine.apply(IDENTITY)
    assert machine.kernel.done == [
        ("entropy", IDENTITY.entropy),
        ("hostname", "sibling-2"),
    ]


def test_random_seed(machine: Machine) -> None:
    """The seed of the next boot is fresh, of full length, and secret."""
    seeds = set()
    for _ in range(2):
        machine.apply(IDENTITY)
        seeds.add((machine.root / "var/lib/systemd/random-seed").read_bytes())
    assert len(seeds) == 2
    assert {len(seed) for seed in seeds} == {512}
    assert machine.mode("var/lib/systemd/random-seed") == 0o600


def test_other_machine_ids(machine: Machine) -> None:
    """Machine ids kept elsewhere follow; a link to the one in /etc stays a link."""
    (machine.root / "run/machine-id").write_text("e" * 32)
    (machine.root / "var/lib/dbus/machine-id").symlink_to(machine.root / "etc/machine-id")
    machine.apply(IDENTITY)
    assert (machine.root / "run/machine-id").read_text().strip() == IDENTITY.machine_id
    assert (machine.root / "var/lib/dbus/machine-id").is_symlink()


def test_authorized_keys(machine: Machine) -> None:
    """Keys that may log in are written where only root can, and do not stay for a sibling."""
    keys = machine.root / "run/arrakis/ssh/elara"
    machine.apply(IDENTITY)
    assert not (machine.root / "run/arrakis").exists()
    for text in (b"ssh-ed25519 AAAA a\nssh-ed25519 BBBB b\n", b"ssh-ed25519 CCCC c\n"):
        machine.apply(evolve(IDENTITY, ssh_authorized_keys=text))
        assert keys.read_bytes() == text
    assert machine.mode("run/arrakis/ssh/elara") == 0o644
    assert {machine.mode("run/arrakis"), machine.mode("run/arrakis/ssh")} == {0o755}
    machine.apply(IDENTITY)
    assert not keys.exists()


def test_bare_root(tmp_path: Path) -> None:
    """Missing files and directories are made."""
    machine = Machine(tmp_path)
    machine.apply(IDENTITY)
    assert "127.0.0.1\tlocalhost\n" in (tmp_path / "etc/hosts").read_text()
    assert (tmp_path / "etc/ssh/ssh_host_ed25519_key").exists()


def test_applied_twice(machine: Machine) -> None:
    """A second identity replaces the first, and leaves no trace of it."""
    machine.apply(IDENTITY)
    machine.apply(evolve(IDENTITY, hostname="x", ssh_host_key=b"k"))
    for path in machine.root.rglob("*"):
        assert not path.is_file() or b"sibling-2" not in path.read_bytes()
    assert (machine.root / "etc/ssh/ssh_host_ed25519_key").read_bytes() == b"k"


@pytest.mark.parametrize(
    ("identity", "field"),
    [
        (evolve(IDENTITY, hostname="../x"), "hostname"),
        (evolve(IDENTITY, hostname="a\nb"), "hostname"),
        (evolve(IDENTITY, hostname="-a"), "hostname"),
        (evolve(IDENTITY, machine_id="G" * 32), "machine_id"),
        (evolve(IDENTITY, machine_id="a" * 31 + "\n"), "machine_id"),
    ],
)
def test_what_is_no_identity(machine: Machine, identity: Identity, field: str) -> None:
    """An identity that could not be one is refused before anything is changed."""
    before = {path: path.read_bytes() for path in machine.root.rglob("*") if path.is_file()}
    with pytest.raises(InvalidParamsError, match=field):
        machine.apply(identity)
    after = {path: path.read_bytes() for path in machine.root.rglob("*") if path.is_file()}
    assert after == before
    assert machine.kernel.done == []


def test_network(machine: Machine) -> None:
    """The network comes last, so that the machine is another one before it can be reached."""
    with pytest.raises(InvalidParamsError, match="nowhere"):
        machine.apply(evolve(IDENTITY, network=Network(mac="52:54:00:00:00:01", address="nowhere")))
    assert (machine.root / "etc/ssh/ssh_host_ed25519_key").read_bytes() == IDENTITY.ssh_host_key


@pytest.mark.parametrize(
    ("answer", "booted"),
    [(b"starting\n", False), (b"running\n", True), (b"degraded\n", True), (b"", False)],
)
def test_booted(tmp_path: Path, answer: bytes, booted: bool) -> None:
    """A guest has booted when systemd says so; once it did, it is not asked again."""
    (tmp_path / "proc/17").mkdir(parents=True)
    (tmp_path / "proc/uptime").write_text("12.5 20.0\n")
    (tmp_path / "proc/loadavg").write_text("0.75 0.5 0.25 1/99 1234\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:  60 kB\n")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    asked = []

    async def run_tool(argv: Sequence[str], _stdin: bytes) -> tuple[int, bytes]:
        asked.append(tuple(argv))
        return 0, answer

    async def report_twice(poller: Poller) -> None:
        reporter = HealthReporter(tmp_path, run_tool)
        for _ in range(2):
            health = await reporter.report(make_call(poller), Nothing())
            assert health.booted == booted
            assert (health.uptime, health.load, health.processes) == (12.5, 0.75, 1)
            assert (health.memory_total, health.memory_available) == (102_400, 61_440)

    run(report_twice)
    assert asked == [("systemctl", "is-system-running")] * (1 if booted else 2)
