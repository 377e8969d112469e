"""The tables of the documentation agree with the code."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from types import ModuleType

import attrs
import pytest
from docs_pages import ROOT, read, rows

from arrakis.cli.main import cli
from arrakis_rpc import PROTOCOL_VERSION, connection, errors, framing
from arrakisd.http.app import ROUTES
from arrakisd.settings.config import Config
from arrakisd.settings.health import HealthConfig
from arrakisd.settings.http import HttpConfig
from arrakisd.settings.limits import LimitsConfig
from arrakisd.settings.network import NetworkConfig
from arrakisd.settings.pool import PoolConfig
from arrakisd.settings.snapshots import SnapshotsConfig

GO_KEYS = [
    "state_dir",
    "bridge_name",
    "bridge_ip",
    "bridge_subnet",
    "chv_bin",
    "kernel",
    "rootfs",
    "initramfs",
    "port_forwards",
    "stateful_size_in_mb",
    "guest_mem_percentage",
]

MIB = 2**20


def test_every_setting_is_documented_and_none_that_does_not_exist() -> None:
    """The keys in docs/configuration.md are those of Config."""
    assert rows("docs/configuration.md", "Keys").keys() == attrs.fields_dict(Config).keys()


@pytest.mark.parametrize("field", attrs.fields(Config), ids=lambda field: field.name)
def test_a_default_is_documented_as_it_is(field: attrs.Attribute[object]) -> None:
    """The default in the table is the one in Config; one that is computed is told in words."""
    documented = rows("docs/configuration.md", "Keys")[field.name][0]
    match field.default:
        case attrs.Factory():
            assert documented.startswith("by ")
        case None:
            assert documented == "none"
        case str(text):
            assert documented == f'"{text}"'
        case number:
            assert documented == str(number)


def test_every_request_is_documented_and_none_that_does_not_exist() -> None:
    """The table in docs/http.md has the routes of the app."""
    assert rows("docs/http.md", "Requests").keys() == {f"{one.verb} {one.path}" for one in ROUTES}


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("Network", NetworkConfig),
        ("HTTP", HttpConfig),
        ("Pool", PoolConfig),
        ("Snapshots", SnapshotsConfig),
        ("Limits", LimitsConfig),
        ("Health", HealthConfig),
    ],
    ids=str,
)
def test_every_setting_of_a_table_is_documented_with_its_default(
    heading: str, kind: type[attrs.AttrsInstance]
) -> None:
    """The keys in the table are those of its class, and the defaults are TOML for its own."""
    documented = {key: cells[0] for key, cells in rows("docs/configuration.md", heading).items()}
    read_back = {
        key: None if text == "none" else tomllib.loads(f"value = {text}")["value"]
        for key, text in documented.items()
    }
    assert read_back == attrs.asdict(kind())


def test_every_key_of_the_go_program_has_its_counterpart_named() -> None:
    """The table of the Go program's keys is complete, and names settings that exist."""
    table = rows("docs/configuration.md", "Keys of the Go program")
    documented = {key for cell in table for key in re.findall(r"\w+", cell)}
    assert documented == set(GO_KEYS)
    counterparts = {cells[0].split("`")[0].split(",")[0] for cells in table.values()}
    ours = {field.name for field in attrs.fields(Config)}
    ours |= {f"network.{field.name}" for field in attrs.fields(NetworkConfig)}
    assert {name for name in counterparts if re.fullmatch(r"[\w.]+", name)} <= ours


def test_every_error_is_documented_with_its_code() -> None:
    """The table in docs/protocol.md holds the errors that cross the wire, and no others."""
    classes = [errors.ArrakisError, *errors.ArrakisError.__subclasses__()]
    ours = {str(one.code): one.__name__ for one in classes if one.__module__ == errors.__name__}
    table = rows("docs/protocol.md", "Errors")
    assert {code: cells[0].strip("`") for code, cells in table.items()} == ours


def test_the_limits_of_the_protocol_are_documented_as_they_are() -> None:
    """Version, frames, windows and numbers of calls and channels are those of the code."""
    page = read("docs/protocol.md")
    limits = rows("docs/protocol.md", "Frames")
    assert limits["length of a frame"] == [f"{framing.MAX_FRAME // MIB} MiB"]
    assert limits["values in a frame"] == [f"{framing.MAX_ITEMS:,}".replace(",", " ")]
    assert limits["nesting"] == [f"{framing.MAX_NESTING} levels"]
    assert f"Version {PROTOCOL_VERSION}." in page
    assert f"a credit of {connection.WINDOW // MIB} MiB" in page
    assert f"up to {connection.MAX_CHUNK // 1024} KiB" in page
    assert f"at most {connection.MAX_CALLS} on a connection" in page
    assert f"at most {connection.MAX_CHANNELS} channels" in page


def test_the_reference_of_operations_is_up_to_date() -> None:
    """docs/operations-reference.md is what docs/generate.py makes now."""
    assert read("docs/operations-reference.md") == _generator().render()


def test_every_verb_of_the_command_line_is_documented() -> None:
    """The verbs in docs/cli.md are those of the command line."""
    cells = [cell for row in _verb_table() for cell in row]
    assert {verb for cell in cells for verb in re.findall(r"[\w-]+", cell)} == set(cli.commands)


def test_every_exit_code_is_documented() -> None:
    """The exit codes in docs/cli.md are those that --help names."""
    assert cli.epilog is not None
    named = re.findall(r"(?:^|\s)(\d+)  +[a-z]", cli.epilog)
    assert list(rows("docs/cli.md", "Exit codes")) == sorted(named, key=int)


def _verb_table() -> list[list[str]]:
    table = rows("docs/cli.md", "The command line")
    return [[cell.replace("`", " ") for cell in cells] for cells in table.values()]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
