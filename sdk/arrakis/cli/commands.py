"""Verbs that run commands in a machine: run, exec, shell, ssh."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from .common import WithCommand, as_json, environment_of_daemon, named, pairs, sandbox, verb
from .output import is_terminal, print_json, say

if TYPE_CHECKING:
    from arrakis import Completed, Process, Pty

_environment = click.option(
    "-e", "--env", multiple=True, metavar="KEY=VALUE", callback=pairs, help="Set a variable."
)
_directory = click.option("-w", "--cwd", metavar="DIR", help="Run in this directory.")
_user = click.option("-u", "--user", metavar="USER", help="Run as this user.")


@verb("run", "arrakis run -n box -c 'uname -a'")
@named
@click.option("-c", "--cmd", required=True, metavar="CMD", help="What bash is to run.")
@click.option("-b", "--background", is_flag=True, help="Start it, and do not wait.")
@as_json
def run(name: str, cmd: str, background: bool, as_json: bool) -> int:
    """Run a shell command in /tmp/server_files; prints its output."""
    if as_json or background:
        result = sandbox(name).run_cmd(cmd, blocking=not background)
        if as_json:
            print_json(result)
        else:
            say(result["output"])
        return 0 if not result["error"] else 1
    with sandbox(name).exec(cmd, merge_output=True) as process:
        return _relay(process)


@click.command(
    "exec",
    cls=WithCommand,
    options_metavar="NAME [OPTIONS]",
    epilog="\b\nExample:\n  arrakis exec box -e LANG=C -- ls -l /\n"
    "  tar c src | arrakis exec box -- tar x -C /tmp",
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The machine's name.")
@click.argument("argv", nargs=-1, required=True, metavar="[--] COMMAND...")
@_environment
@_directory
@_user
@click.option("--timeout", type=float, metavar="S", help="Kill the command after S seconds.")
@click.option("-i", "--interactive", is_flag=True, help="Forward stdin even from a terminal.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
def exec_(name: str, argv: tuple[str, ...], interactive: bool, tty: bool, **options: Any) -> int:
    """Run a command with its arguments, and give its exit code.

    Its streams are ours. What is piped in goes to the command; to keep that from it, use
    </dev/null.
    """
    if tty:
        return _on_terminal(name, argv, **options)
    stdin = interactive or _is_piped()
    with sandbox(name).exec(argv, stdin=stdin, **options) as process:
        return _relay(process, forward=stdin)


@verb("shell", "arrakis shell box --user elara")
@named
@_environment
@_directory
@_user
def shell(name: str, **options: Any) -> int:
    """Open a login shell on this terminal."""
    return _on_terminal(name, ("bash", "-l"), **options)


@click.command(
    "ssh",
    cls=WithCommand,
    options_metavar="NAME [OPTIONS]",
    epilog="\b\nExample:\n  arrakis ssh box\n  arrakis ssh box -u root -- 'dmesg | tail'\n"
    "  arrakis ssh box -o 'LocalForward 8080 localhost:80'\n"
    "  GIT_SSH_COMMAND='arrakis ssh' git clone box:/home/elara/project",
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The machine's name.")
@click.argument("argv", nargs=-1, metavar="[--] [COMMAND...]")
@click.option(
    "-u", "-l", "--user", default="elara", metavar="USER", help="Log in as USER.  [default: elara]"
)
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "-o", "--option", "options", multiple=True, metavar="OPTION", help="As of ssh; repeatable."
)
def ssh(name: str, argv: tuple[str, ...], user: str, tty: bool, options: tuple[str, ...]) -> int:
    """Log in with ssh, or run a COMMAND in a login shell; its exit code is that of ssh.

    It needs no network and no keys of yours: it makes a pair that is good for this once. As
    with ssh, the words of COMMAND are joined, and read by the user's shell.
    """
    from .ssh import log_in

    if tty:
        options = ("RequestTTY=force", *options)
    there = environment_of_daemon()
    return log_in(sandbox(name), argv, user=user, options=options, environment=there)


def _is_piped() -> bool:
    try:
        return not os.isatty(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):
        return False  # closed, or not a file at all


def _on_terminal(name: str, argv: tuple[str, ...], **options: Any) -> int:
    from .terminal import Terminal

    if _is_piped() or not is_terminal(sys.stdout):
        raise click.UsageError("this needs a terminal; without one, use 'arrakis exec'")
    with Terminal() as terminal:
        pty: Pty = terminal.describe()
        with sandbox(name).exec(argv, stdin=True, pty=pty, **options) as process:
            return _relay(process, forward=True, terminal=terminal)


def _relay(process: Process, **how: Any) -> int:
    from .terminal import relay

    return _exit_code(relay(process, **how))


def _exit_code(completed: Completed) -> int:
    if completed.timed_out:
        return 124
    if completed.signal is not None:
        return 128 + completed.signal
    return completed.exit_code or 0


VERBS: list[click.Command] = [run, exec_, shell, ssh]
