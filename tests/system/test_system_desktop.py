"""The desktop image: on the screen at once, behind a password, and it takes what is typed."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pointer_recorder
import pytest
import trio
from in_guest import ask
from mcp import Client, StdioServerParameters
from PIL import Image
from real_daemon import Daemon, shortest, wait_until
from vnc_viewer import BAR, colours, is_there, lets_in, viewing
from vncdotool import api

from arrakis import (
    GuestError,
    InvalidParamsError,
    InvalidStateError,
    Sandbox,
    SandboxManager,
    UnsupportedError,
)
from arrakis_kernel import cache_directory
from arrakis_rootfs import ImageStore, ensure_desktop

pytestmark = [
    pytest.mark.vm,
    # The library's own way of coming by DES, which is all that VNC has.
    pytest.mark.filterwarnings("ignore:TripleDES has been moved"),
]

_PROGRAM = "/usr/lib/arrakis-desktop/act"
_LONG = 60.0
_ARRAKIS = str(Path(sys.executable).with_name("arrakis"))

_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module", autouse=True)
def desktop_template(daemon: Daemon) -> Iterator[None]:
    """The machine's desktop image, which is made if it is not there, and its template."""
    cache = cache_directory()
    store = ImageStore(cache / "images")
    trio.run(partial(ensure_desktop, store, cache, lambda step: print(step.text)))
    with SandboxManager(socket=daemon.socket) as manager:
        template = manager.templates.build(image="desktop")
        yield
        manager.templates.delete(template.id)
    api.shutdown()


def gui(sandbox: Sandbox) -> tuple[str, int]:
    """Give the address at which the host has a machine's screen."""
    forwards = sandbox.info()["port_forwards"]
    (port,) = [one["host_port"] for one in forwards if one["description"] == "gui"]
    return "127.0.0.1", int(port)


def password_of(sandbox: Sandbox) -> str:
    return sandbox.run(["desktop-password"], check=True).text.strip()


def test_a_fresh_machine_shows_its_desktop_at_once(manager: SandboxManager) -> None:
    """The first frame comes within twice what `base` takes to its first command, and shows a
    desktop: not one colour, and a bar at its lower edge."""
    assert shortest(lambda: _times_a_first_command(manager), 2) < 2


def test_a_terminal_opens_and_takes_what_is_typed(manager: SandboxManager) -> None:
    """A key opens a terminal; what is typed there shows, and is run by elara."""
    with (
        manager.start_sandbox("desk", image="desktop") as sandbox,
        viewing(gui(sandbox), password_of(sandbox)) as viewer,
    ):
        empty = viewer.look("desktop-empty")
        viewer.press("ctrl-alt-t")
        opened = viewer.look_until_changed("desktop-terminal", empty)
        viewer.type("whoami ")
        typed = viewer.look_until_changed("desktop-typed", opened)
        # By now the shell has certainly said all that it says by itself.
        viewer.type(">seen")
        viewer.look_until_changed("desktop-typed-more", typed)
        viewer.type("\n")
        wait_until(lambda: sandbox.files.exists("/home/elara/seen"), 10)
        wait_until(lambda: sandbox.files.read_text("/home/elara/seen") == "elara\n", 10)


def test_commands_find_the_screen(manager: SandboxManager) -> None:
    """A graphical program that is run as a command, by root or by elara, is on the screen."""
    with (
        manager.start_sandbox("desk", image="desktop") as sandbox,
        viewing(gui(sandbox), password_of(sandbox)) as viewer,
    ):
        before = viewer.look("desktop-empty")
        for user in ("root", "elara"):
            with sandbox.exec(["xterm"], user=user) as window:
                opened = viewer.look_until_changed("desktop-window", before)
                window.kill()
            before = viewer.look_until_changed("desktop-closed", opened)


def test_nobody_gets_in_without_the_password_of_this_machine(manager: SandboxManager) -> None:
    """Before its password was asked for nobody gets in; then with it only; and a restored
    machine's is another."""
    with manager.start_sandbox("desk", image="desktop") as sandbox:
        assert ask(sandbox, "cat /run/arrakis-desktop/*") == "", "the template has a password"
        assert not lets_in(gui(sandbox), "")
        password = password_of(sandbox)
        assert password_of(sandbox) == password
        assert not lets_in(gui(sandbox), password[::-1])
        assert lets_in(gui(sandbox), password)
        (fork,) = sandbox.fork(1)
        with fork:
            other = password_of(fork)
            assert other != password
            assert not lets_in(gui(fork), password)
            assert lets_in(gui(fork), other)
            assert lets_in(gui(sandbox), password)


def test_only_a_password_is_offered(manager: SandboxManager) -> None:
    """The server offers no way in that needs no password."""
    with (
        manager.start_sandbox("desk", image="desktop") as sandbox,
        socket.create_connection(gui(sandbox), timeout=10) as client,
    ):
        client.sendall(client.recv(12))
        assert client.recv(16) == bytes([1, 2]), "VncAuth alone"


def test_no_other_guest_reaches_the_screen(manager: SandboxManager) -> None:
    """While the host gets through, another machine does not, neither directly nor through the
    port that the host has for it."""
    with (
        manager.start_sandbox("desk", image="desktop") as desk,
        manager.start_sandbox("other") as other,
    ):
        address, gateway = desk.info()["ip"].split("/")[0], _gateway(other)
        wait_until(lambda: is_there(gui(desk)), 30)
        for host, port in ((address, 5901), (gateway, gui(desk)[1])):
            told = other.run(["python3", "-S", "-c", _CONNECT, host, str(port)], check=True)
            assert told.text.strip() in ("TimeoutError", "ConnectionRefusedError", "OSError"), host


def test_a_desktop_that_dies_comes_back(manager: SandboxManager) -> None:
    """Server and window manager are started again, and the screen is as in the beginning."""
    with manager.start_sandbox("desk", image="desktop") as sandbox:
        password = password_of(sandbox)
        for name in ("jwm", "Xtigervnc"):
            before = ask(sandbox, f"pgrep -x {name}")
            ask(sandbox, f"pkill -KILL -x {name}")
            wait_until(lambda name=name, old=before: _other_pid(sandbox, name, old), 30)
        wait_until(lambda: is_there(gui(sandbox)), 30)
        with viewing(gui(sandbox), password) as viewer:
            wait_until(lambda: colours(viewer.look("desktop-again")) > 16, 30)


def test_a_screenshot_is_what_a_viewer_sees(manager: SandboxManager) -> None:
    """Pixel for pixel, but for the pointer; and so it is when the size of the screen changes."""
    with (
        manager.start_sandbox("desk", image="desktop") as sandbox,
        viewing(gui(sandbox), password_of(sandbox)) as viewer,
    ):
        sandbox.desktop.move(1279, 0)  # viewers see the pointer
        below = (0, 64, 1280, 800)

        def are_equal() -> bool:
            return _screen(sandbox).crop(below) == viewer.look("desktop-seen").crop(below)

        wait_until(are_equal, _LONG)
        assert colours(_screen(sandbox)) > 16
        assert ask(sandbox, "xrandr -s 1024x768") == ""
        wait_until(lambda: _screen(sandbox).size == (1024, 768), _LONG)
        sandbox.desktop.click(1023, 767)
        with pytest.raises(InvalidParamsError, match="outside of the screen, which is 1024 x 768"):
            sandbox.desktop.click(1024, 767)


def test_what_is_typed_arrives_as_it_is(manager: SandboxManager) -> None:
    """In a terminal that a combination of keys has opened, whatever the characters are."""
    text = "Grüße für 3 €, 'привет' \"世界\" 😀 $x \\ ~^`|<>\n\tÄÖÜäöü!\n"
    with manager.start_sandbox("desk", image="desktop") as sandbox:
        before = _screen(sandbox)
        sandbox.desktop.key("Ctrl+alt+T")
        wait_until(lambda: _has_settled(sandbox, before), _LONG)
        sandbox.desktop.type("cat >typed\n")
        wait_until(lambda: sandbox.files.exists("/home/elara/typed"), _LONG)
        sandbox.desktop.type(text)
        sandbox.desktop.key("ctrl+D")
        wait_until(lambda: sandbox.files.read_text("/home/elara/typed") == text, _LONG)


async def test_the_pixel_that_is_meant_is_hit(
    manager: SandboxManager, daemon: Daemon, http_port: int, token: str, tmp_path: Path
) -> None:
    """By whatever way somebody asks for it: SDK, SDK over HTTP, command line, REST and MCP."""
    url = f"http://127.0.0.1:{http_port}"
    with manager.start_sandbox("desk", image="desktop") as sandbox:
        await trio.to_thread.run_sync(_start_recorder, sandbox)

        def do_most() -> None:
            sandbox.desktop.click(123, 456, button="right", count=2)
            sandbox.desktop.drag(10, 20, 310, 420)
            with SandboxManager(url, token) as remote:
                Sandbox(remote._client, "desk").desktop.scroll(50, 60, dx=-1, dy=2)
                assert Sandbox(remote._client, "desk").desktop.screenshot().height == 800
            picture = tmp_path / "screen.png"
            _arrakis(daemon, "desktop", "desk", "click", "0", "799", "--button", "middle")
            told = _arrakis(daemon, "desktop", "desk", "screenshot", str(picture), "--json")
            assert (json.loads(told)["width"], json.loads(told)["height"]) == (1280, 800)
            assert Image.open(io.BytesIO(picture.read_bytes())).size == (1280, 800)
            here = f"{url}/v1/vms/desk/desktop"
            assert json.loads(_http(f"{here}/click", token, {"x": 1279, "y": 0}))["success"]
            assert Image.open(io.BytesIO(_http(f"{here}/screenshot", token))).size == (1280, 800)

        await trio.to_thread.run_sync(do_most)
        server = StdioServerParameters(
            command=_ARRAKIS, args=["--socket", str(daemon.socket), "mcp"]
        )
        async with Client(server) as client:
            clicked = await client.call_tool("click", {"vm_name": "desk", "x": 7, "y": 8})
            assert not clicked.is_error, clicked.content
            [image, size] = (await client.call_tool("screenshot", {"vm_name": "desk"})).content
            assert (image.type, image.mime_type) == ("image", "image/png")
            assert "1280 x 800" in size.text
            refused = await client.call_tool(
                "press_key", {"vm_name": "desk", "combo": "ctrl+x+nix"}
            )
            assert refused.is_error
            assert "no key called nix" in refused.content[0].text
        await trio.to_thread.run_sync(_check_recorded, sandbox)


def _check_recorded(sandbox: Sandbox) -> None:
    last = "release 1 7 8\n"
    wait_until(lambda: sandbox.files.read_text("/tmp/events").endswith(last), _LONG)
    events = sandbox.files.read_text("/tmp/events").splitlines()
    clicks = [one for one in events if not one.startswith("move")]
    assert clicks == [
        "ready",
        *["press 3 123 456", "release 3 123 456"] * 2,
        "press 1 10 20",
        "release 1 310 420",
        *["press 6 50 60", "release 6 50 60"],
        *["press 5 50 60", "release 5 50 60"] * 2,
        *["press 2 0 799", "release 2 0 799"],
        *["press 1 1279 0", "release 1 1279 0"],
        *["press 1 7 8", "release 1 7 8"],
    ]
    began, ended = events.index("press 1 10 20"), events.index("release 1 310 420")
    assert "move 0 160 220" in events[began:ended], "a drag passes what lies between"


def test_what_cannot_be_done_on_a_screen_is_said(manager: SandboxManager) -> None:
    """Keys that there are not, machines without a desktop, and one that lies about its screen."""
    with manager.start_sandbox("plain") as plain:
        with pytest.raises(UnsupportedError, match="no desktop") as refused:
            plain.desktop.screenshot()
        assert "--image desktop" in (refused.value.hint or "")
        plain.pause()
        with pytest.raises(InvalidStateError):
            plain.desktop.click(1, 1)
    with manager.start_sandbox("desk", image="desktop") as sandbox:
        with pytest.raises(InvalidParamsError, match="no key called nonsense"):
            sandbox.desktop.key("ctrl+nonsense")
        with pytest.raises(InvalidParamsError, match="control character"):
            sandbox.desktop.type("\x1b[2J")
        head = sandbox.desktop.screenshot()[:33]
        lies = {"nothing": b"", "no PNG": b"P6" + bytes(100), "damaged": head[:-1] + b"?"}
        for what, given in {**lies, "endless": head + bytes(4_100_000)}.items():
            sandbox.files.write("/tmp/given", given)
            sandbox.files.write(_PROGRAM, b"#!/bin/sh\nexec cat /tmp/given\n")
            with pytest.raises(GuestError, match="no picture of its screen"):
                pytest.fail(f"{what} was taken: {sandbox.desktop.screenshot()!r}")
        sandbox.files.write(_PROGRAM, b"#!/bin/sh\nexec sleep 4321\n")
        call = manager._client.open("desktop.type", {"vm": "desk", "text": "never"})
        wait_until(lambda: sandbox.run(["pgrep", "-f", "^sleep 4321"]).ok, _LONG)
        call.cancel()
        wait_until(lambda: not sandbox.run(["pgrep", "-f", "^sleep 4321"]).ok, _LONG)


def _screen(sandbox: Sandbox) -> Image.Image:
    picture = sandbox.desktop.screenshot()
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    assert image.size == (picture.width, picture.height)
    return image


def _has_settled(sandbox: Sandbox, before: Image.Image) -> bool:
    once = _screen(sandbox)
    time.sleep(0.5)
    return before != once == _screen(sandbox)


def _start_recorder(sandbox: Sandbox) -> None:
    sandbox.files.write("/tmp/recorder.py", Path(pointer_recorder.__file__).read_bytes())
    sandbox.exec(["python3", "/tmp/recorder.py", "/tmp/events"], background=True).wait()
    wait_until(lambda: sandbox.run(["grep", "-q", "ready", "/tmp/events"]).ok, _LONG)


def _arrakis(daemon: Daemon, *words: str) -> str:
    argv = [_ARRAKIS, "--socket", str(daemon.socket), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _http(url: str, token: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=_LONG) as answer:
        content: bytes = answer.read()
        return content


def _gateway(sandbox: Sandbox) -> str:
    return ask(sandbox, "ip route show default").split()[2]


def _times_a_first_command(manager: SandboxManager) -> float:
    command, frame = _seconds_to_first_command(manager), _seconds_to_first_frame(manager)
    print(f"base to its first command {command:.2f} s, desktop to its first frame {frame:.2f} s")
    return frame / command


def _seconds_to_first_command(manager: SandboxManager) -> float:
    began = time.monotonic()
    with manager.start_sandbox("plain") as sandbox:
        assert ask(sandbox, "echo up") == "up"
        return time.monotonic() - began


def _seconds_to_first_frame(manager: SandboxManager) -> float:
    began = time.monotonic()
    with manager.start_sandbox("desk", image="desktop") as sandbox:
        with viewing(gui(sandbox), password_of(sandbox)) as viewer:
            screen = viewer.look("desktop")
        took = time.monotonic() - began
        assert screen.size == (1280, 800)
        assert colours(screen) > 16
        assert colours(screen.crop((0, 800 - BAR, 1280, 800))) > 16, "no buttons on the bar"
        assert ask(sandbox, "systemctl is-system-running") == "running"
    return took


def _other_pid(sandbox: Sandbox, name: str, before: str) -> bool:
    return sandbox.run(["pgrep", "-x", name]).text.strip() not in ("", before)
