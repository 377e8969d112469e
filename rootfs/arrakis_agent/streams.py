"""The pipes, or the terminal, between a command and the agent."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from attrs import Factory, define

from arrakis_rpc.guest_api import ExecSpec, Pty

from .spawn import Action

_PIPE_CAPACITY = 64 * 1024
# No less than the kernel holds between the two ends of a terminal.
_TERMINAL_CAPACITY = 1024 * 1024


@define
class Streams:
    """The descriptors of a command.

    ``actions`` set up the child's; ``theirs`` are the ends to close when it runs, ``ours``
    belong to whom they are given. ``outputs`` are read for the channel of that name;
    what was written to one may be read later, up to ``capacity`` bytes. ``terminal``
    is one more descriptor of the terminal, for its size.
    """

    actions: list[Action] = Factory(list)
    theirs: list[int] = Factory(list)
    ours: list[int] = Factory(list)
    outputs: list[tuple[str, int]] = Factory(list)
    capacity: int = _PIPE_CAPACITY
    input: int | None = None
    terminal: int | None = None

    def close_theirs(self) -> None:
        """Close the child's ends, which it has by now, or never will."""
        for fd in self.theirs:
            os.close(fd)

    def close_ours(self) -> None:
        """Close the agent's ends, of a command that did not start."""
        for fd in self.ours:
            os.close(fd)


def open_streams(spec: ExecSpec, null: int, owner: tuple[int, int] | None) -> Streams:
    """Open what a command needs. ``null`` is open on /dev/null.

    ``owner`` is the user and group of a command that does not run as root: they own the
    child's ends, or the command could not open its own ``/dev/stdout``.
    """
    streams = Streams()
    try:
        if spec.pty:
            _open_terminal(streams, spec.pty, with_input=spec.stdin)
        else:
            _open_pipes(streams, spec, null)
        if owner:
            for fd in streams.theirs:
                os.fchown(fd, *owner)
    except BaseException:
        streams.close_theirs()
        streams.close_ours()
        raise
    return streams


def set_size(terminal: int, rows: int, cols: int) -> None:
    """Set the size of a terminal; what runs in it is told by the kernel."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def _open_pipes(streams: Streams, spec: ExecSpec, null: int) -> None:
    child_input = null
    if spec.stdin:
        child_input, streams.input = os.pipe2(os.O_CLOEXEC)
        streams.theirs.append(child_input)
        streams.ours.append(streams.input)
    child_output = _open_output(streams, "stdout")
    child_error = child_output if spec.merge_output else _open_output(streams, "stderr")
    streams.actions = [
        (os.POSIX_SPAWN_DUP2, child_input, 0),
        (os.POSIX_SPAWN_DUP2, child_output, 1),
        (os.POSIX_SPAWN_DUP2, child_error, 2),
    ]


def _open_output(streams: Streams, channel: str) -> int:
    our_end, their_end = os.pipe2(os.O_CLOEXEC)
    streams.ours.append(our_end)
    streams.theirs.append(their_end)
    streams.outputs.append((channel, our_end))
    return their_end


def _open_terminal(streams: Streams, pty: Pty, *, with_input: bool) -> None:
    master, slave = os.openpty()
    streams.ours.append(master)
    streams.theirs.append(slave)
    set_size(master, pty.rows, pty.cols)
    streams.outputs.append(("stdout", master))
    streams.capacity = _TERMINAL_CAPACITY
    streams.terminal = os.dup(master)
    streams.ours.append(streams.terminal)
    if with_input:
        streams.input = os.dup(master)
        streams.ours.append(streams.input)
    # The leader of a session gets the first terminal that it opens as its controlling one.
    streams.actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
    ]
