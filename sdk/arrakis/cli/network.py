"""Verbs on a machine's network: ports, egress, gui."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from .common import as_json, named, sandbox, verb
from .output import print_fields, print_json, print_table, say

if TYPE_CHECKING:
    from arrakis import Sandbox

_LOOPBACK = "127.0.0.1"
_GUI = "gui"
_PASSWORD_PROGRAM = "desktop-password"  # noqa: S105 -- what the image desktop calls it
_MOST_SAID = 4096
_MODES = ("none", "internet")

_by_name = click.option("-n", "--name", metavar="NAME", help="The machine's name.")
_allow = click.option(
    "--allow",
    multiple=True,
    metavar="TARGET",
    help="Only this of the internet, ADDRESS, NETWORK or DOMAIN[:PORT[-PORT]]; repeatable.",
)


def connected(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``network``: what was chosen of a new machine's egress and ports."""

    @click.option("--egress", type=click.Choice(_MODES), help="What it may connect to at all.")
    @_allow
    @click.option(
        "-p",
        "--port",
        "ports",
        multiple=True,
        metavar="[HOST:]GUEST",
        help="Forward this port, and no others than those given; repeatable.",
    )
    @functools.wraps(function)
    def wrapper(
        *args: Any, egress: str | None, allow: tuple[str, ...], ports: tuple[str, ...], **rest: Any
    ) -> Any:
        if allow and egress is not None:
            raise click.UsageError("--allow says all of what is allowed; give no --egress with it")
        chosen = {"egress": list(allow) or egress, "ports": list(ports)}
        network = {key: value for key, value in chosen.items() if value}
        return function(*args, network=network, **rest)

    return wrapper


def _split(name: str | None, words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Tell the machine's name, which is the first word unless -n gave it, from the other words."""
    if name is None and not words:
        raise click.UsageError("a NAME is missing: give it as the first word or with -n")
    return (name, words) if name is not None else (words[0], words[1:])


@verb(
    "ports",
    "arrakis ports box\n"
    "arrakis ports box add 8000\n"
    "arrakis ports box add 8080:8000 --publish --description web\n"
    "arrakis ports box remove 8080",
)
@click.argument("words", nargs=-1, metavar="NAME [add [HOST:]GUEST | remove HOST]")
@_by_name
@click.option("--publish", is_flag=True, help="Reachable at all of the host's addresses.")
@click.option("--description", default="", metavar="TEXT", help="What it is, in your words.")
@as_json
def ports(
    words: tuple[str, ...], name: str | None, publish: bool, description: str, as_json: bool
) -> None:
    """List, add or remove the ports that lead into a machine.

    They are reached at 127.0.0.1 of the daemon's host, with --publish from outside, too.
    Without a HOST port the daemon chooses one that is free.
    """
    name, what = _split(name, words)
    if what[:1] != ("add",) and (publish or description):
        raise click.UsageError("--publish and --description go with 'add'")
    match what:
        case ():
            _list_ports(sandbox(name), as_json)
        case ("add", port):
            _add_port(sandbox(name), port, publish, description, as_json)
        case ("remove", port) if port.isascii() and port.isdecimal():
            _remove_port(sandbox(name), int(port), as_json)
        case _:
            raise click.UsageError("after NAME comes nothing, 'add [HOST:]GUEST' or 'remove HOST'")


def _list_ports(machine: Sandbox, as_json: bool) -> None:
    found = machine.ports.list()
    if as_json:
        print_json(found)
        return
    print_table(
        ("HOST", "GUEST", "PUBLISHED", "DESCRIPTION"),
        [
            (one.host_port, one.guest_port, "yes" if one.published else "-", one.description)
            for one in found
        ],
    )


def _add_port(machine: Sandbox, port: str, publish: bool, description: str, as_json: bool) -> None:
    from arrakis.network import read_port

    asked = read_port(port)
    added = machine.ports.add(asked.guest_port, asked.host_port, description, publish)
    if as_json:
        print_json(added)
        return
    host = added.host_port
    where = f"port {host} of all addresses" if added.published else f"{_LOOPBACK}:{host}"
    say(f"forwarded {where} to port {added.guest_port} of {machine.name}")


def _remove_port(machine: Sandbox, host_port: int, as_json: bool) -> None:
    machine.ports.remove(host_port)
    if as_json:
        print_json({"name": machine.name, "host_port": host_port, "done": "removed"})
    else:
        say(f"removed {host_port}")


@verb(
    "egress",
    "arrakis egress box\n"
    "arrakis egress box none\n"
    "arrakis egress box --allow pypi.org:443 --allow '*.pythonhosted.org:443'",
)
@click.argument("words", nargs=-1, metavar="NAME [none | internet]")
@_by_name
@_allow
@as_json
def egress(words: tuple[str, ...], name: str | None, allow: tuple[str, ...], as_json: bool) -> None:
    """Show or change what a machine may connect to.

    'internet' is all but the host, other machines and private networks. A change replaces all
    that held before, and cuts open connections that are not allowed any more.
    """
    name, what = _split(name, words)
    if len(what) > 1 or (what and what[0] not in _MODES):
        raise click.UsageError("after NAME comes 'none', 'internet', or --allow TARGET for each")
    if what and allow:
        raise click.UsageError(f"'{what[0]}' and --allow exclude each other")
    machine = sandbox(name)
    if what or allow:
        machine.set_egress(what[0] if what else allow)
    found = machine.info()["egress"]
    if as_json:
        print_json(found)
    else:
        say(egress_text(found) or "not connected to a network")


def egress_text(egress: Mapping[str, Any] | None) -> str | None:
    """Give a policy, as `Sandbox.info` has it, in a line."""
    if egress is None:
        return None
    return f"only {', '.join(egress['allow'])}" if egress["allow"] else str(egress["mode"])


@verb("gui", "arrakis gui box\narrakis gui box --open")
@named
@click.option("--open", "is_opened", is_flag=True, help="Open a VNC viewer, and wait for its end.")
@as_json
def gui(name: str, is_opened: bool, as_json: bool) -> int:
    """Tell where the desktop of a machine is reached with VNC, and its password.

    That is where the port is that is described as "gui". The password is known for the
    image desktop, and those that descend from it.
    """
    machine = sandbox(name)
    port, password = _gui_port(machine), _gui_password(machine)
    # Two colons: what follows is a port and not the number of a display.
    viewer = ["vncviewer", f"{_LOOPBACK}::{port}"]
    if as_json:
        print_json({"host": _LOOPBACK, "port": port, "password": password})
    else:
        print_fields(
            [
                ("Address", f"{_LOOPBACK}:{port}"),
                ("Password", password),
                ("Connect", " ".join(viewer)),
                ("From elsewhere", f"ssh -L {port}:{_LOOPBACK}:{port} HOST, and then the same"),
            ]
        )
    return _open(viewer, password) if is_opened else 0


def _gui_port(machine: Sandbox) -> int:
    for one in machine.ports.list():
        if one.description == _GUI:
            return one.host_port
    from arrakis import NotFoundError

    raise NotFoundError(
        f"no port of the host leads to a desktop of '{machine.name}'",
        hint=f"arrakis ports {machine.name} add 5901 --description {_GUI}",
    )


def _gui_password(machine: Sandbox) -> str | None:
    from attrs import evolve

    from arrakis import NotFoundError

    # Whoever is root in the guest decides what it says, and how much.
    said = {"stdout": bytearray(), "stderr": bytearray()}
    try:
        with machine.exec([_PASSWORD_PROGRAM]) as process:
            for stream, data in process:
                said[stream] += data
                if sum(map(len, said.values())) > _MOST_SAID:
                    return None
            done = process.wait()
    except NotFoundError:
        return None
    evolve(done, stdout=bytes(said["stdout"]), stderr=bytes(said["stderr"])).check()
    told = said["stdout"].decode(errors="replace").strip()
    return told if re.fullmatch(r"[!-~]{1,8}", told) else None


def _open(viewer: list[str], password: str | None) -> int:
    # Here, as they would cost every other verb some milliseconds.
    import os
    import shutil
    import subprocess

    program = shutil.which(viewer[0])
    if program is None:
        from arrakis import UnsupportedError

        raise UnsupportedError(
            f"the program {viewer[0]} is not installed here",
            hint="apt-get install tigervnc-viewer, or give another viewer the address",
        )
    environment = {**os.environ, **({"VNC_PASSWORD": password} if password else {})}
    return subprocess.run([program, *viewer[1:]], check=False, env=environment).returncode


VERBS: list[click.Command] = [ports, egress, gui]
