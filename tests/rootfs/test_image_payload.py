import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import trio

from arrakis_kernel import cache_directory
from arrakis_rootfs.payload import assemble_payload, hash_payload

PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import attrs, cattrs, json, msgpack, typing_extensions, arrakis_agent, arrakis_rpc
import msgpack._cmsgpack
print(json.dumps([msgpack.version, {m.__name__: m.__file__ for m in (
    attrs, cattrs, msgpack, msgpack._cmsgpack, typing_extensions, arrakis_agent, arrakis_rpc)}]))
"""


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    downloads = cache_directory() / "downloads"
    trio.run(assemble_payload, tmp_path / "agent", downloads, print)
    return tmp_path / "agent"


def test_payload_stands_on_its_own(payload: Path) -> None:
    """A Python without any package of its own imports all of the agent's, compiled msgpack too."""
    command = [sys.executable, "-I", "-S", "-c", PROBE, str(payload)]
    done = subprocess.run(command, capture_output=True, check=True)
    msgpack_version, places = json.loads(done.stdout)
    assert ".".join(map(str, msgpack_version)) == version("msgpack")
    assert all(Path(place).is_relative_to(payload) for place in places.values())


def test_every_guest_python_finds_its_msgpack(payload: Path) -> None:
    """The extension modules for all supported Pythons lie side by side."""
    modules = {path.name.split(".")[1] for path in (payload / "msgpack").glob("*.so")}
    assert modules >= {f"cpython-3{minor}-x86_64-linux-gnu" for minor in (11, 12, 13, 14)}


def test_launcher_starts_the_agent(payload: Path) -> None:
    """The launcher gets as far as the agent's main function, which finds no port here."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", payload / "arrakis-agent", "--help"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"ModuleNotFoundError" not in done.stderr
    assert b"ImportError" not in done.stderr


def test_payload_carries_nothing_needless(payload: Path) -> None:
    """No compiled files of this host's Python and no foreign files are taken along."""
    assert {path.suffix for path in payload.rglob("*") if path.is_file()} <= {".py", ".so", ""}
    size = sum(path.stat().st_size for path in payload.rglob("*") if path.is_file())
    assert size < 10_000_000


def test_digest_is_stable() -> None:
    """The digest depends on nothing but the content."""
    assert hash_payload() == hash_payload()
