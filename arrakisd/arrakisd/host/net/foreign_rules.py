"""Rules of others on this host that stop guests, whatever ours allow.

A packet that is forwarded has to be accepted by the chain of each table. Docker, for one, makes a
chain that drops what nobody has spoken for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from attrs import frozen

from . import nftables

_DOCKERS = "DOCKER-USER"  # which Docker asks rules of others to be put into
_FAMILIES = ("ip", "inet")


@frozen
class Obstacle:
    """A table that drops what a bridge's guests send, and the commands that let it pass."""

    table: str
    remedy: str


def obstacles(bridge: str) -> list[Obstacle]:
    """Find the tables that drop what is forwarded unless a rule accepts it, and have none for us.

    Only what nftables knows is seen: not rules of an iptables that calls itself legacy. Works in
    the namespace of the thread that calls it; blocks for some milliseconds. Raises `OSError`
    where it may not look, or cannot.
    """
    try:
        content = json.loads(nftables.listing("list ruleset"))["nftables"]
    except ValueError as error:  # it can be built without
        raise OSError("libnftables lists nothing as JSON") from error
    chains = [one["chain"] for one in content if "chain" in one]
    rules = [one["rule"] for one in content if "rule" in one]
    return list(_dropping(bridge, chains, rules))


def _dropping(
    bridge: str, chains: list[dict[str, Any]], rules: list[dict[str, Any]]
) -> Iterator[Obstacle]:
    for chain in chains:
        family, table = chain["family"], chain["table"]
        if (chain.get("hook"), chain.get("policy")) != ("forward", "drop"):
            continue
        if family not in _FAMILIES or _speaks_for(bridge, family, table, rules):
            continue
        if any(one["name"] == _DOCKERS and one["table"] == table for one in chains):
            ways = [f"iptables -I {_DOCKERS} -{way} {bridge} -j ACCEPT" for way in "io"]
        else:
            insert = f"nft insert rule {family} {table} {chain['name']}"
            ways = [f"{insert} {way}ifname {bridge} accept" for way in "io"]
        yield Obstacle(f"{family} {table}", " && ".join(ways))


def _speaks_for(bridge: str, family: str, table: str, rules: list[dict[str, Any]]) -> bool:
    """Whether a table has a rule that accepts something of a bridge's; which, is not looked at."""
    return any(
        {"accept": None} in rule["expr"] and f'"{bridge}"' in json.dumps(rule["expr"])
        for rule in rules
        if (rule["family"], rule["table"]) == (family, table)
    )
