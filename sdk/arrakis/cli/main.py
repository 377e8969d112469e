"""The entry point: all verbs, and what their failures look like."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from arrakis import __version__

from . import (
    commands,
    copying,
    desktop,
    images,
    limits,
    mcp,
    network,
    snapshots,
    system,
    tokens,
    vms,
)
from .failures import failed
from .output import complain

_SECTIONS: dict[str, list[click.Command]] = {
    "Machines": [*vms.VERBS, *limits.VERBS],
    "Commands in a machine": commands.VERBS,
    "Files": copying.VERBS,
    "Network": network.VERBS,
    "Desktop": desktop.VERBS,
    "Snapshots": snapshots.VERBS,
    "Images and templates": images.VERBS,
    "The daemon": [*system.VERBS, *tokens.VERBS, *mcp.VERBS],
}

_EXIT_CODES = """\b
Exit codes:
  0  done                            5    a resource of the host does not suffice
  1  any other error                 6    the daemon cannot be reached
  2  wrong usage or parameters       7    the guest or its hypervisor failed
  3  not found                       8    no token, a wrong or a revoked one
  4  exists already, or not legal    124  a time limit was exceeded
     in the present state            130  interrupted by Ctrl+C
'run', 'exec', 'shell' and 'ssh' give the exit code of their command, or 128 + the
number of the signal that ended it."""


class _Verbs(click.Group):
    """A group whose help lists the verbs by what they are about."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a verb; "snapshot diff A B" is "snapshot-diff A B"."""
        # Not "snapshot diff": that is a snapshot of a machine called "diff".
        joined = "-".join(args[:2])
        if len(args) > 2 and not args[2].startswith("-") and joined in self.commands:
            args = [joined, *args[2:]]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.list_commands(ctx))
        for title, verbs in _SECTIONS.items():
            with formatter.section(title):
                for verb in verbs:
                    name = f"{verb.name:<{width}}"
                    formatter.write(f"  {name}  {verb.get_short_help_str(76 - width)}\n")


@click.group(
    cls=_Verbs,
    commands=[verb for verbs in _SECTIONS.values() for verb in verbs],
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--socket",
    metavar="PATH",
    help="The daemon's socket.  [default: $ARRAKIS_SOCKET, or /run/arrakis/arrakisd.sock]",
)
@click.option(
    "--url",
    metavar="URL",
    help="Or its URL, as http://127.0.0.1:7000; its token is $ARRAKIS_TOKEN."
    "  [default: $ARRAKIS_URL]",
)
@click.option(
    "--ca-file",
    metavar="FILE",
    help="The CA of an https URL.  [default: $ARRAKIS_CA_FILE, or those of this host]",
)
@click.version_option(__version__, prog_name="arrakis")
def cli(socket: str | None, url: str | None, ca_file: str | None) -> None:  # noqa: ARG001 -- `manager` reads it
    """Disposable microVMs that can be snapshotted, restored and forked.

    A machine's NAME can be given as an argument or with -n; for 'rename' and 'desktop' it is an
    argument. 'stop', 'pause', 'suspend', 'resume' and 'destroy' take several.
    """
    if socket and url:
        raise click.UsageError("a daemon is reached by --socket or --url, not by both")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        # What a guest says may not be writable in this terminal's encoding.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = run(arguments)
    try:
        if sys.stdout is not None:  # which it is if whoever started this has closed it
            sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_gone()
    except OSError as error:
        _forget_output()
        code = code or failed(error)  # mostly told of already, when it was first written
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; give the exit code, having told of errors on stderr."""
    if "_ARRAKIS_COMPLETE" in os.environ:
        cli.main(prog_name="arrakis")  # asked by a shell for what a line could go on with
    try:
        # Not cli.main, which has views of its own on exit codes.
        words = sys.argv[1:] if arguments is None else [*arguments]
        with cli.make_context("arrakis", words) as context:
            code: Any = cli.invoke(context)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        help_of = getattr(error, "ctx", None)
        complain(error.format_message(), help_of and f"'{help_of.command_path} --help' tells more")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        return _reader_gone()
    except Exception as error:  # noqa: BLE001 -- the boundary where errors become words
        return failed(error)
    return code if isinstance(code, int) else 0


def _reader_gone() -> int:
    _forget_output()
    return 141  # as for a program that SIGPIPE ends


def _forget_output() -> None:
    # What is still buffered has nowhere to go.
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
