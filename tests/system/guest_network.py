"""What guests do to a network: they try to reach others, and send frames that they should not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen
from internet import links
from real_daemon import Daemon, namespace_of

from arrakis import Sandbox, SandboxManager

# Everything at once, as what is dropped answers nothing and takes the whole time.
PROBE = """
import json, select, socket, sys, time
targets, patience, hellos = json.loads(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
waiting, results = {}, {}
for key, (kind, host, port) in enumerate(targets):
    s = socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setblocking(False)
    results[key] = "silent"
    try:
        error = s.connect_ex((host, port))
        if kind == "udp":
            s.send(b"?")
        waiting[s] = key
    except OSError as e:
        results[key] = e.strerror
began = time.monotonic()
def is_over():
    heard = sum(result.startswith("hello") for result in results.values())
    return time.monotonic() - began > (patience if heard >= hellos else 60)
while waiting and not is_over():
    for s in select.select(list(waiting), [], [], 0.1)[0]:
        try:
            results[waiting[s]] = "hello " + s.recv(100).decode().strip()
        except OSError as e:
            results[waiting[s]] = e.strerror
        del waiting[s]
print(json.dumps(list(results.values())))
"""

SEND = """
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for line in sys.stdin:
    s.send(bytes.fromhex(line))
"""

LISTEN = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 0))
print("listening", flush=True)
while True:
    frame, origin = s.recvfrom(65536)
    if origin[2] != socket.PACKET_OUTGOING:
        print(frame.hex(), flush=True)
"""

Target = tuple[str, str, int]


@frozen
class Place:
    """Where a sandbox is in the network."""

    ip: str
    mac: str
    tap: str
    gateway: str
    gateway_mac: str


def place_of(sandbox: Sandbox, daemon: Daemon) -> Place:
    """Find out where a sandbox is in the network."""
    info = sandbox.info()
    ip = info["ip"].partition("/")[0]
    mac = "02:a2:" + ":".join(f"{int(part):02x}" for part in ip.split("."))
    bridge = links(namespace_of(daemon.state))["arrakis0"]
    return Place(ip, mac, info["tap_device_name"], "10.20.1.1", bridge["address"])


def probe(
    sandbox: Sandbox, targets: Sequence[Target], patience: float = 2.0, hellos: int = 0
) -> list[str]:
    """Try to reach targets; "hello ADDRESS" is the answer of one, with the sender's address.

    For so many ``hellos`` it waits longer: a busy host may take seconds for what it lets pass.
    """
    command = ["python3", "-S", "-c", PROBE, json.dumps(targets), str(patience), str(hellos)]
    answers: list[str] = json.loads(sandbox.run(command, check=True).text)
    return answers


def send_frames(sandbox: Sandbox, frames: Sequence[bytes]) -> None:
    """Send frames as they are, as the guest's root."""
    lines = "".join(f"{frame.hex()}\n" for frame in frames)
    sandbox.run(["python3", "-S", "-c", SEND], input=lines, user="root", check=True)


def start(
    manager: SandboxManager, name: str, *, snapshot: str | None = None, **network: Any
) -> Sandbox:
    """Start or restore a sandbox with wishes for its network: ``egress`` and ``ports``."""
    params = {"name": name, "network": network, **({"snapshot": snapshot} if snapshot else {})}
    manager._client.call("vm.start", params)
    return Sandbox(manager._client, name)


def set_egress(manager: SandboxManager, sandbox: Sandbox, mode: str, *allow: str) -> None:
    """Change what a running sandbox may reach."""
    egress = {"mode": mode, "allow": list(allow)}
    manager._client.call("egress.set", {"vm": sandbox.name, "egress": egress})


@contextmanager
def siblings(manager: SandboxManager, *names: str) -> Iterator[list[Sandbox]]:
    """Sandboxes with ordinary settings, for the length of a block."""
    started = [manager.start_sandbox(name) for name in names]
    yield started
    for sandbox in started:
        sandbox.destroy()
