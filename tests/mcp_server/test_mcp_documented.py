"""The pages on the MCP server say what is true."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from docs_pages import blocks, marked_block, rows
from mcp import Client, StdioServerParameters
from mcp_harness import ARRAKIS

from arrakis.mcp.server import TOOLS

TABLE = rows("docs/mcp.md", "Tools")


def test_the_table_has_all_tools_in_their_order() -> None:
    """Neither is one missing, nor one told of that is not there."""
    assert list(TABLE) == list(TOOLS)


@pytest.mark.parametrize("name", TOOLS)
def test_the_arguments_of_a_tool_are_documented(name: str) -> None:
    """Those that must be given stand before the semicolon, the others after it."""
    required, _, optional = TABLE[name][0].partition(";")
    parameters = list(inspect.signature(TOOLS[name][0]).parameters.values())[1:]
    documented = [[word.strip(" `") for word in part.split(",")] for part in (required, optional)]
    assert [[word for word in part if word] for part in documented] == [
        [one.name for one in parameters if one.default is one.empty],
        [one.name for one in parameters if one.default is not one.empty],
    ]


async def test_the_configuration_in_the_readme_starts_a_server() -> None:
    """A client that reads it, with arrakis on its PATH, finds the tools."""
    configured = json.loads(marked_block("README.md", "mcp configuration"))
    assert json.loads(blocks("docs/mcp.md", "json")[0]) == configured
    server = configured["mcpServers"]["arrakis"]
    environment = {"PATH": str(Path(ARRAKIS).parent)}
    async with Client(StdioServerParameters(**server, env=environment)) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS.keys()
