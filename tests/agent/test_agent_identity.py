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
from arrakis_agent.spawn import Spawner
from arrakis_agent.tools import Tools
from arrakis_rpc.connection import Connection, Role
from arrakis_rpc.errors import GuestError, InvalidParamsError, NotFoundError
from arrakis_rpc.guest_api import Identity, Network, Nothing

NETWORK = Network(
    mac="52:54:00:AB:cd:01",
    address="10.20.1.7/24",
    gateway="10.20.1.1",
    dns=["10.20.1.1", "2001:db8::1"],
)
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

    def add_entropy(self, entropy: bytes) -> None:
        self.done.append(("entropy", entropy))


def make_call(poller: Poller) -> Call:
    return Call(1, Connection(Role.CALLEE), Output(Port(0, poller, reconnects=False)), ())


class Machine:
    """A scratch root, a kernel on paper, and an ``ip`` that answers as told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kernel = KernelOnPaper()
        self.answer = (0, b"")
        self.ran: list[tuple[tuple[str, ...], bytes]] = []
        self.keeper = IdentityKeeper(root, self.kernel, Networks(root, self.run_tool))

    async def run_tool(self, argv: Sequence[str], stdin: bytes) -> tuple[int, bytes]:
        self.ran.append((tuple(argv), stdin))
        return self.answer

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
    assert machine.ran == []


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


def add_interfaces(root: Path) -> None:
    for name, address in (("lo", "00:00:00:00:00:00"), ("enp0s3", NETWORK.mac.lower())):
        (root / "sys/class/net" / name).mkdir(parents=True)
        (root / "sys/class/net" / name / "address").write_text(address + "\n")


def test_network(machine: Machine) -> None:
    """The interface is found by its address, and configured by one run of ip."""
    add_interfaces(machine.root)
    resolver = machine.root / "etc/resolv.conf"
    resolver.symlink_to("../run/stub-resolv.conf")
    machine.apply(evolve(IDENTITY, network=NETWORK))
    ((argv, batch),) = machine.ran
    assert argv == ("ip", "-batch", "-")
    assert batch.decode().splitlines() == [
        "address flush dev enp0s3 scope global",
        "address replace 10.20.1.7/24 dev enp0s3",
        "link set dev enp0s3 up",
        "route replace default via 10.20.1.1 dev enp0s3",
    ]
    assert not resolver.is_symlink()
    assert resolver.read_text() == "nameserver 10.20.1.1\nnameserver 2001:db8::1\n"


def test_network_without_more(machine: Machine) -> None:
    """Without gateway and name servers there is no route, and the resolver is left alone."""
    add_interfaces(machine.root)
    machine.apply(evolve(IDENTITY, network=evolve(NETWORK, gateway=None, dns=[])))
    assert b"route" not in machine.ran[0][1]
    assert not (machine.root / "etc/resolv.conf").exists()


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (evolve(NETWORK, mac="52:54:00:00:00:99"), NotFoundError, "52:54:00:00:00:99"),
        (evolve(NETWORK, address="10.20.1.300/24"), InvalidParamsError, "10.20.1.300"),
        (evolve(NETWORK, gateway="x\nlink delete"), InvalidParamsError, "network: 'x"),
        (evolve(NETWORK, dns=["x\ny"]), InvalidParamsError, "network: 'x"),
    ],
)
def test_network_that_cannot_be(
    machine: Machine, network: Network, error: type[Exception], message: str
) -> None:
    """Addresses that are none, and an interface that is not there, are refused."""
    add_interfaces(machine.root)
    with pytest.raises(error, match=message):
        machine.apply(evolve(IDENTITY, network=network))
    assert machine.ran == []


def test_ip_fails(machine: Machine) -> None:
    """If ip cannot do it, its own words are the error."""
    add_interfaces(machine.root)
    machine.answer = (1, b"Error: Nexthop has invalid gateway.\n")
    with pytest.raises(GuestError, match="enp0s3: Error: Nexthop has invalid gateway"):
        machine.apply(evolve(IDENTITY, network=NETWORK))


def test_real_ip_takes_the_batch(machine: Machine, tmp_path: Path) -> None:
    """The real ip understands what it is given, in a network name space of its own."""
    script = tmp_path / "ip"
    script.write_text(
        "#!/bin/sh\nexec unshare --net sh -c"
        " '/sbin/ip link add enp0s3 type veth && cat > $0.in && /sbin/ip -batch $0.in"
        " && /sbin/ip -o addr show dev enp0s3 && /sbin/ip route' $0\n"
    )
    script.chmod(0o755)
    add_interfaces(machine.root)
    outputs = []

    async def configure(poller: Poller) -> None:
        tools = Tools(Spawner(str(tmp_path)), poller)

        async def run_tool(argv: Sequence[str], stdin: bytes) -> tuple[int, bytes]:
            assert argv[0] == "ip"
            result = await tools.run([str(script), *argv[1:]], stdin)
            outputs.append(result)
            return result

        await Networks(machine.root, run_tool).configure(NETWORK)

    run(configure)
    ((status, output),) = outputs
    assert status == 0
    assert b"inet 10.20.1.7/24" in output
    assert b"default via 10.20.1.1 dev enp0s3" in output


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
