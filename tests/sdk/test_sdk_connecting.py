"""Finding the daemon, greeting it, keeping connections, and losing it."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from real_daemon import shortest
from scripted_daemon import HEALTH, VM, GoneError, Peer, Script, Server, answering

import arrakis._wire
from arrakis import (
    ArrakisError,
    ConnectionLostError,
    InvalidParamsError,
    InvalidStateError,
    NotFoundError,
    Progress,
    ProtocolError,
    SandboxManager,
)
from arrakis_rpc.connection import CallReceived

Start = Callable[[Script], Server]


def test_missing_socket_is_an_error_that_says_how_to_start_the_daemon(tmp_path: Path) -> None:
    """Without a socket every call says where it looked and how to start a daemon."""
    manager = SandboxManager(socket=tmp_path / "none.sock")
    with pytest.raises(ConnectionLostError, match="no socket at") as caught:
        manager.health()
    assert "start the daemon" in str(caught.value.hint)


def test_socket_that_nobody_serves_is_a_clear_error(tmp_path: Path) -> None:
    """A socket left behind by a dead daemon is told from one that is missing."""
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "s"))
    with pytest.raises(ConnectionLostError, match="nothing listens"):
        SandboxManager(socket=tmp_path / "s").health()


def test_missing_permission_names_the_group(tmp_path: Path) -> None:
    """Someone outside the group is told which group to join."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        (tmp_path / "s").chmod(0)
        program = (
            "import os, sys, arrakis._wire as wire\n"
            "if os.geteuid() == 0: os.setuid(65534)\n"
            "try: wire.connect(sys.argv[1])\n"
            "except wire.ConnectionLostError as error: print(error, error.hint)"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "s"], capture_output=True, text=True
        )
    assert "no permission" in told.stdout, told.stderr
    assert "usermod -aG arrakis" in told.stdout


def test_argument_wins_over_environment_over_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The socket is the argument, else ARRAKIS_SOCKET, else the path of the system's daemon."""
    monkeypatch.delenv("ARRAKIS_SOCKET", raising=False)
    assert SandboxManager().socket == "/run/arrakis/arrakisd.sock"
    monkeypatch.setenv("ARRAKIS_SOCKET", "/from/environment")
    assert SandboxManager().socket == "/from/environment"
    assert SandboxManager(socket=tmp_path).socket == str(tmp_path)


def test_greeting_travels_with_the_first_call(scripted: Start) -> None:
    """Greeting and first call are both there before the daemon has answered anything."""

    def script(peer: Peer) -> None:
        greeting, call = peer.call(greet=False), peer.call(greet=False)
        assert (greeting.method, call.method) == ("system.hello", "system.health")
        assert greeting.params["versions"] == [1]
        peer.answer(greeting, {"version": 1, "daemon": "peer"})
        peer.answer(call, HEALTH)

    assert scripted(script).manager.health().status == "healthy"


def test_calls_one_after_another_share_a_connection(scripted: Start) -> None:
    """A connection is greeted once and used for call after call, errors included."""
    server = scripted(answering(system_health=HEALTH, vm_info=NotFoundError("no VM")))
    manager = server.manager
    for _ in range(3):
        manager.health()
        with pytest.raises(NotFoundError):
            manager.get("box")
    assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"version": 2, "daemon": "peer 9"}, "chose version 2"),
        ({"version": 1}, "daemon: required field missing"),
        (InvalidStateError("too old"), "too old"),
    ],
)
def test_greeting_that_is_not_accepted_fails_the_call(
    scripted: Start, answer: Any, message: str
) -> None:
    """Whatever is wrong with the greeting's answer is what the first call raises."""

    def script(peer: Peer) -> None:
        peer.answer(peer.call(greet=False), answer)
        call = peer.call(greet=False)
        peer.answer(call, HEALTH)

    with pytest.raises(ArrakisError, match=message):
        scripted(script).manager.health()


def test_answer_before_the_greeting_is_a_breach(scripted: Start) -> None:
    """A daemon that answers a call without having greeted is not believed."""

    def script(peer: Peer) -> None:
        peer.call(greet=False)
        peer.answer(peer.call(greet=False), HEALTH)

    with pytest.raises(ProtocolError, match="before the greeting"):
        scripted(script).manager.health()


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n", b"\0\0\0\1\xc1"])
def test_garbage_is_a_breach_of_the_protocol(scripted: Start, garbage: bytes) -> None:
    """What is no frame ends the call, at once and with a word about it."""

    def script(peer: Peer) -> None:
        peer.call()
        peer.send(garbage)

    server = scripted(script)
    with pytest.raises(ProtocolError):
        server.manager.health()


def test_answer_of_another_form_is_the_daemons_fault(scripted: Start) -> None:
    """A result that is not what the operation promises names the field."""
    server = scripted(answering(system_health={**HEALTH, "uptime": "long"}))
    with pytest.raises(ProtocolError, match="uptime"):
        server.manager.health()


def test_bad_parameters_are_refused_before_anything_is_sent(scripted: Start) -> None:
    """A parameter of a wrong type or form is refused here, and names itself."""
    server = scripted(answering())
    with pytest.raises(InvalidParamsError, match="name is up to 63"):
        server.manager.start_sandbox("../etc")
    with pytest.raises(InvalidParamsError, match="vcpus: expected int"):
        server.manager.start_sandbox("box", vcpus="2")
    assert server.connections == 0


def test_daemon_that_dies_in_a_call_fails_it(scripted: Start) -> None:
    """No call waits for a daemon that is gone, and the error says how to start it again."""
    server = scripted(lambda peer: peer.call())
    with pytest.raises(ConnectionLostError, match="lost the daemon") as caught:
        server.manager.start_sandbox("box")
    assert "arrakisd" in str(caught.value.hint)


def test_daemon_that_says_nothing_at_all_is_given_up(
    scripted: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What accepts a connection and never answers the greeting is not waited for for ever."""
    monkeypatch.setattr(arrakis._wire, "GREETING_SECONDS", 0.1)

    def script(peer: Peer) -> None:
        while True:
            peer.event()

    with pytest.raises(ConnectionLostError, match="did not answer"):
        scripted(script).manager.health()


def test_restart_of_the_daemon_costs_no_call(scripted: Start) -> None:
    """Connections that died while they were idle are replaced unnoticed."""
    server = scripted(answering(system_health=HEALTH))
    manager = server.manager
    manager.health()
    server.hang_up()
    select.select(manager._client._pool._idle, [], [], 30)  # until that has come here
    manager.health()
    assert server.connections == 2


def test_progress_is_told_and_may_end_the_call(scripted: Start) -> None:
    """Steps come as they are sent; an exception of the callback cancels the call."""
    ended = threading.Event()

    def start(peer: Peer, call: CallReceived) -> Any:
        peer.note(call, "call.progress", text="booting", step=1, total=2)
        if call.params["name"] == "fine":
            return VM
        with pytest.raises(GoneError):
            peer.event()
        ended.set()
        raise GoneError

    manager = scripted(answering(vm_start=start)).manager
    seen: list[Progress] = []
    manager.start_sandbox("fine", progress=seen.append)
    assert seen == [Progress("booting", 1, 2)]

    def stop(progress: Progress) -> None:
        raise LookupError(progress.text)

    with pytest.raises(LookupError, match="booting"):
        manager.start_sandbox("ended", progress=stop)
    assert ended.wait(30)


def test_interrupted_call_is_cancelled_and_leaves_nothing_behind(scripted: Start) -> None:
    """Ctrl+C in a call closes its connection; the next call has another one."""
    gone = threading.Event()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored

    def start(peer: Peer, _: CallReceived) -> Any:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        with pytest.raises(GoneError):
            peer.event()
        gone.set()
        raise GoneError

    server = scripted(answering(vm_start=start, system_health=HEALTH))
    manager = server.manager
    with pytest.raises(KeyboardInterrupt):
        manager.start_sandbox("box")
    assert gone.wait(30)
    manager.health()
    assert server.connections == 2


def test_threads_share_a_manager(scripted: Start) -> None:
    """Each thread gets the answers to its own calls, and no more connections than threads."""

    def info(_: Peer, call: CallReceived) -> Any:
        return {**VM, "name": call.params["name"]}

    server = scripted(answering(vm_info=info))
    manager = server.manager
    wrong: list[str] = []

    def ask(name: str) -> None:
        wrong.extend(name for _ in range(50) if manager.get(name).info()["name"] != name)

    threads = [threading.Thread(target=ask, args=(f"box{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert server.connections <= 8


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_child_process_speaks_on_connections_of_its_own(scripted: Start) -> None:
    """After a fork both parent and child can call, and the child's end cancels nothing."""
    finish = threading.Event()

    def run(peer: Peer, call: CallReceived) -> Any:
        finish.wait(30)
        return {"pid": 1, "exit_code": 7}

    server = scripted(answering(system_health=HEALTH, exec_run=run))
    manager = server.manager
    manager.health()
    process = server.sandbox.exec("sleep 1")
    lock = manager._client._pool._lock
    lock.acquire()  # as another thread may have done
    child = os.fork()
    if child == 0:
        code = 1
        signal.alarm(60)
        try:
            assert manager.health().status == "healthy"
            with pytest.raises(InvalidStateError, match="belongs to process"):
                process.wait()
            process._call.close()
            del process
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    lock.release()
    assert os.waitpid(child, 0)[1] == 0
    finish.set()
    assert process.wait().exit_code == 7
    manager.health()
    assert server.connections == 3


def test_closed_manager_refuses_calls(scripted: Start) -> None:
    """After close a manager and its sandboxes say so."""
    server = scripted(answering(system_health=HEALTH))
    with server.manager as manager:
        manager.health()
    with pytest.raises(InvalidStateError, match="closed"):
        manager.health()


def test_manager_need_not_be_closed(scripted: Start) -> None:
    """A manager that is dropped closes its connections without a warning."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.answer(peer.call(), HEALTH)
        with pytest.raises(GoneError):
            peer.event()
        gone.set()

    manager = scripted(script).manager
    manager.health()
    del manager
    gc.collect()
    assert gone.wait(30)


def test_events_come_until_the_caller_stops(scripted: Start) -> None:
    """Events are told one by one, and leaving the loop ends the subscription."""
    gone = threading.Event()

    def subscribe(peer: Peer, call: CallReceived) -> Any:
        with suppress(GoneError):  # the caller may leave before the last one is written
            for number in range(3):
                peer.note(call, "event", kind="vm.started", time=1.0, vm=f"box{number}", data={})
        with pytest.raises(GoneError):
            peer.event()
        gone.set()
        raise GoneError

    events = scripted(answering(events_subscribe=subscribe)).manager.events()
    assert [next(events).vm for _ in range(2)] == ["box0", "box1"]
    events.close()
    assert gone.wait(30)


def test_busy_listener_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that accepts no connection any more is an error after a while."""
    monkeypatch.setattr(arrakis._wire, "CONNECT_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "s"))

            def give_up() -> float:
                began = time.monotonic()
                with pytest.raises(ConnectionLostError, match="accepts no"):
                    SandboxManager(socket=tmp_path / "s").health()
                return time.monotonic() - began

            assert shortest(give_up, 5) < 5


def test_crowded_listener_is_waited_for(tmp_path: Path) -> None:
    """A daemon whose queue is full for a moment is asked again."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "s"))
            accepting = threading.Timer(0.2, lambda: listener.accept()[0].close())
            accepting.start()
            arrakis._wire.connect(str(tmp_path / "s")).close()
            accepting.join()
