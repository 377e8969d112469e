"""What the verbs share: the machine's name, ``--json``, the way to the daemon."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from arrakis import Sandbox, SandboxManager

Verb = TypeVar("Verb", bound=Callable[..., Any])

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
            raise click.UsageError("a NAME is missing: give it as an argument or with -n")
        return function(*args, name=name, **options)

    return wrapper


def manager() -> SandboxManager:
    """Give the daemon that ``--socket`` or the environment names."""
    from arrakis import SandboxManager

    context = click.get_current_context()
    return context.with_resource(SandboxManager(socket=context.find_root().params["socket"]))


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
