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

    ``actions`` set up the child's. Of each output there is a channel, our end and the far
    end; what was written to one may be read later, up to ``capacity`` bytes. ``child_input``
    is to be closed when the child runs. ``terminal`` is one more descriptor of the terminal,
    for its size.
    """

    actions: list[Action] = Factory(list)
    outputs: list[tuple[str, int, int]] = Factory(list)
    capacity: int = _PIPE_CAPACITY
    child_input: int | None = None
    input: int | None = None
    terminal: int | None = None

    def close_child_input(self) -> None:
        """Close the child's end of its input, which it has by now."""
        if self.child_input is not None:
            os.close(self.child_input)
            self.child_input = None

    def close(self) -> None:
        """Close all, of a command that did not start."""
        self.close_child_input()
        for fd in (self.input, self.terminal):
            if fd is not None:
                os.close(fd)
        for _, our_end, far_end in self.outputs:
            os.close(our_end)
            os.close(far_end)


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
            if streams.child_input is not None:
                os.fchown(streams.child_input, *owner)
            for _, _, far_end in streams.outputs:
                os.fchown(far_end, *owner)
    except BaseException:
        streams.close()
        raise
    return streams


def set_size(terminal: int, rows: int, cols: int) -> None:
    """Set the size of a terminal; what runs in it is told by the kernel."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def _open_pipes(streams: Streams, spec: ExecSpec, null: int) -> None:
    if spec.stdin:
        streams.child_input, streams.input = os.pipe2(os.O_CLOEXEC)
    child_output = _open_output(streams, "stdout")
    child_error = child_output if spec.merge_output else _open_output(streams, "stderr")
    streams.actions = [
        (os.POSIX_SPAWN_DUP2, null if streams.child_input is None else streams.child_input, 0),
        (os.POSIX_SPAWN_DUP2, child_output, 1),
        (os.POSIX_SPAWN_DUP2, child_error, 2),
    ]


def _open_output(streams: Streams, channel: str) -> int:
    our_end, far_end = os.pipe2(os.O_CLOEXEC)
    streams.outputs.append((channel, our_end, far_end))
    return far_end


def _open_terminal(streams: Streams, pty: Pty, *, with_input: bool) -> None:
    master, slave = os.openpty()
    streams.outputs.append(("stdout", master, slave))
    streams.capacity = _TERMINAL_CAPACITY
    set_size(master, pty.rows, pty.cols)
    streams.terminal = os.dup(master)
    if with_input:
        streams.input = os.dup(master)
    # The leader of a session gets the first terminal that it opens as its controlling one.
    streams.actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
    ]
