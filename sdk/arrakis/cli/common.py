"""What the verbs share: the machine's name, ``--json``, the way to the daemon."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .failures import failed

if TYPE_CHECKING:
    from arrakis import Sandbox, SandboxManager

Verb = TypeVar("Verb", bound=Callable[..., Any])

_NO_NAME = "a NAME is missing: give it as an argument or with -n"

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def verb(name: str, example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command whose help ends with an example."""
    lines = "\n".join(f"  {line}" for line in example.splitlines())
    return click.command(name, epilog=f"\b\nExample:\n{lines}")


def named(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its ``name``, taken from an argument or from -n."""
    return _named(function, required=True)


def maybe_named(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a ``name`` as `named` does, or None."""
    return _named(function, required=False)


def _named(function: Callable[..., Any], *, required: bool) -> Callable[..., Any]:
    @click.argument("name_argument", metavar="NAME" if required else "[NAME]", required=False)
    @click.option("-n", "--name", "name_option", metavar="NAME", help="The machine's name.")
    @functools.wraps(function)
    def wrapper(
        *args: Any, name_argument: str | None, name_option: str | None, **options: Any
    ) -> Any:
        if name_argument and name_option and name_argument != name_option:
            raise click.UsageError(f"two names: {name_argument} and {name_option}")
        name = name_argument or name_option
        if required and not name:
            raise click.UsageError(_NO_NAME)
        return function(*args, name=name, **options)

    return wrapper


def named_with_snapshot(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a ``name`` and a ``snapshot``: by -n and -i, or as arguments in this order."""

    @click.argument("arguments", metavar="NAME SNAPSHOT", nargs=-1)
    @click.option("-n", "--name", metavar="NAME", help="The machine's name.")
    @click.option("-i", "--snapshot", "--id", metavar="ID", help="The snapshot's id.")
    @functools.wraps(function)
    def wrapper(
        arguments: tuple[str, ...], name: str | None, snapshot: str | None, **others: Any
    ) -> Any:
        rest = list(arguments)
        name = name or (rest.pop(0) if rest else None)
        snapshot = snapshot or (rest.pop(0) if rest else None)
        if not name:
            raise click.UsageError(_NO_NAME)
        if not snapshot:
            raise click.UsageError("a SNAPSHOT is missing: give its id as an argument or with -i")
        if rest:
            raise click.UsageError(f"got an unexpected argument: {rest[0]}")
        return function(name=name, snapshot=snapshot, **others)

    return wrapper


def severally_named(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call a command once for each of its names; one that fails keeps none of the others."""

    @click.argument("arguments", metavar="NAME...", nargs=-1)
    @click.option(
        *("-n", "--name", "options"), metavar="NAME", multiple=True, help="A machine's name."
    )
    @functools.wraps(function)
    def wrapper(arguments: tuple[str, ...], options: tuple[str, ...], **others: Any) -> int:
        from arrakis import ArrakisError

        names = dict.fromkeys((*arguments, *options))
        if not names:
            raise click.UsageError(_NO_NAME)
        code = 0
        for name in names:
            try:
                function(name=name, **others)
            except ArrakisError as error:
                code = failed(error)
        return code

    return wrapper


class WithCommand(click.Command):
    """NAME, options and a command, whose own options are not ours.

    Options may stand on both sides of NAME; from the first word of the command on, or
    from ``--``, everything belongs to the command.
    """

    allow_interspersed_args = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the first word where NAME is missing."""
        options, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        argv = options.get("argv")
        rest = list(argv) if isinstance(argv, (tuple, list)) else []
        if rest and "name" not in options:
            before = args[: len(args) - len(rest)]
            args = ["-n", rest[0], *(word for word in before if word != "--"), *rest[1:]]
        return super().parse_args(ctx, args)


def manager() -> SandboxManager:
    """Give the daemon that ``--socket``, ``--url`` or the environment names."""
    from arrakis import SandboxManager

    context = click.get_current_context()
    given = context.find_root().params
    made = SandboxManager(given["url"], socket=given["socket"], ca_file=given["ca_file"])
    return context.with_resource(made)


def environment_of_daemon() -> dict[str, str]:
    """Give the variables by which another ``arrakis`` reaches the same daemon as this one."""
    from arrakis._address import UnixAddress

    address = manager()._client.address
    if isinstance(address, UnixAddress):
        return {"ARRAKIS_SOCKET": address.path, "ARRAKIS_URL": ""}
    return {
        "ARRAKIS_URL": str(address),
        "ARRAKIS_TOKEN": address.token or "",
        "ARRAKIS_CA_FILE": address.ca_file or "",
    }


def sandbox(name: str) -> Sandbox:
    """Give a handle on a machine, without asking whether it is there."""
    from arrakis.sandbox import Sandbox

    return Sandbox(manager()._client, name)


def pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Make a mapping of options of the form KEY=VALUE."""
    for value in values:
        if "=" not in value.lstrip("="):
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE")
    return dict(value.split("=", 1) for value in values)
