"""Verbs on the tokens with which clients come by HTTP."""

from __future__ import annotations

import click

from .common import as_json, manager, verb
from .output import age_text, print_json, print_table, say


@click.group()
def token() -> None:
    """Tokens, for those who reach the daemon by HTTP.

    Whoever has one can do everything that a user of the daemon's socket can, but for these
    verbs: they work on the daemon's host only.
    """


@verb("create", "arrakis token create laptop\nexport ARRAKIS_TOKEN=$(arrakis token create laptop)")
@click.argument("name")
@as_json
def create_token(name: str, as_json: bool) -> None:
    """Make a token and print it; it is shown this once.

    NAME is what you will know it by: lower-case letters, digits and '-'.
    """
    made = manager().tokens.create(name)
    if as_json:
        print_json({"name": name, "token": made})
        return
    # On stderr: what a script takes is the token alone.
    click.echo(f"token '{name}' gives all rights, and is not shown again", err=True)
    say(made)


@verb("list", "arrakis token list --json")
@as_json
def list_tokens(as_json: bool) -> None:
    """List the tokens, by name; not what they are."""
    found = manager().tokens.list()
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "CREATED", "LAST USED"),
        [
            (one.name, age_text(one.created), "never" if one.used is None else age_text(one.used))
            for one in found
        ],
    )


@verb("revoke", "arrakis token revoke laptop")
@click.argument("name")
@as_json
def revoke_token(name: str, as_json: bool) -> None:
    """Let nobody in with a token any more, at once; who is in is cut off."""
    manager().tokens.revoke(name)
    if as_json:
        print_json({"name": name, "done": "revoked"})
    else:
        say(f"revoked {name}")


for _command in (create_token, list_tokens, revoke_token):
    token.add_command(_command)

VERBS: list[click.Command] = [token]
