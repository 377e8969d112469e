"""The daemon's settings: where they come from, and which are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrakis_rpc.errors import InvalidParamsError
from arrakisd.settings.config import Config, load_config


def written(tmp_path: Path, text: str) -> Path:
    """Write a configuration file."""
    file = tmp_path / "arrakisd.toml"
    file.write_text(text)
    return file


def arrakisd(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the daemon's command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "arrakisd", *flags], capture_output=True, text=True, check=False
    )


def test_defaults(tmp_path: Path) -> None:
    """An empty file gives the defaults, which keep to the machine that they are on."""
    config = load_config(written(tmp_path, ""), {}, {})
    assert config == Config()
    assert (config.state_dir, config.socket) == ("/var/lib/arrakis", "/run/arrakis/arrakisd.sock")
    assert 1 <= config.vcpus <= 8


@pytest.mark.parametrize(
    ("key", "variable"),
    [("state_dir", "ARRAKIS_STATE"), ("socket", "ARRAKIS_SOCKET"), ("cache_dir", "ARRAKIS_CACHE")],
)
def test_precedence(tmp_path: Path, key: str, variable: str) -> None:
    """Flags win over environment, environment over file, file over defaults."""
    empty, file = written(tmp_path, ""), tmp_path / "full.toml"
    file.write_text(f'{key} = "/file"')
    environment = {variable: "/environment"}
    assert getattr(load_config(file, {}, {}), key) == "/file"
    assert getattr(load_config(empty, {}, environment), key) == "/environment"
    assert getattr(load_config(file, {}, environment), key) == "/environment"
    assert getattr(load_config(file, {key: "/flag"}, environment), key) == "/flag"
    assert getattr(load_config(file, {key: None}, {variable: ""}), key) == "/file"


def test_which_file(tmp_path: Path) -> None:
    """ARRAKIS_CONFIG names the file, unless a flag does."""
    named, flagged = written(tmp_path, "vcpus = 3"), tmp_path / "flag.toml"
    flagged.write_text("vcpus = 4")
    environment = {"ARRAKIS_CONFIG": str(named)}
    assert load_config(None, {}, environment).vcpus == 3
    assert load_config(flagged, {}, environment).vcpus == 4


@pytest.mark.parametrize("name", [field.name for field in Config.__attrs_attrs__])
def test_nearest_key(tmp_path: Path, name: str) -> None:
    """A misspelt key is refused, and the hint names the right one."""
    misspelt = name[:-2] + name[-1] + name[-2] if name[-2] != name[-1] else name + "x"
    file = written(tmp_path, f'{misspelt} = "x"')
    with pytest.raises(InvalidParamsError) as caught:
        load_config(file, {}, {})
    assert f"{file}: unknown key '{misspelt}'" in str(caught.value)
    assert caught.value.hint == f"did you mean '{name}'?"


def test_key_like_no_other(tmp_path: Path) -> None:
    """For a key that resembles none, the hint lists all there are."""
    with pytest.raises(InvalidParamsError, match="unknown key 'zzzzzz'") as caught:
        load_config(written(tmp_path, "zzzzzz = 1"), {}, {})
    assert caught.value.hint is not None
    assert all(field.name in caught.value.hint for field in Config.__attrs_attrs__)


@pytest.mark.parametrize(
    "line",
    [
        'vcpus = "2"',
        "vcpus = 2.0",
        "vcpus = true",
        "vcpus = 0",
        "vcpus = 65",
        'memory_mib = "1G"',
        "memory_mib = 127",
        "memory_mib = [1024]",
        "disk_mib = 63",
        "state_dir = 3",
        "socket = ['/a']",
        "vmm = 1",
        'accelerator = "xen"',
        'start_timeout = "1"',
        "start_timeout = inf",
        "start_timeout = nan",
        "stop_timeout = -1",
        'log_level = "loud"',
        "log_format = 1",
        "kernel = false",
        "image = 2001-01-01",
    ],
)
def test_wrong_values(tmp_path: Path, line: str) -> None:
    """A value of a wrong type or out of range is refused and never converted."""
    with pytest.raises(InvalidParamsError) as caught:
        load_config(written(tmp_path, line), {}, {})
    assert line.split(" = ")[0] in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    """A file that was asked for must be there, be a file, and be TOML."""
    for problem, file in (
        ("No such file", tmp_path / "missing.toml"),
        ("Is a directory", tmp_path),
        ("is not TOML", written(tmp_path, "vcpus = = 2")),
        ("is not TOML", tmp_path / "binary.toml"),
    ):
        (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(InvalidParamsError, match=problem) as caught:
            load_config(file, {}, {})
        assert str(file) in str(caught.value)


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(
    st.builds(
        Config,
        state_dir=_TEXT,
        socket=_TEXT,
        kernel=st.none() | _TEXT,
        vcpus=st.integers(1, 64),
        memory_mib=st.integers(128, 10**9),
        start_timeout=st.floats(1, 1e300),
        stop_timeout=st.floats(0, 1e-9),
        log_level=st.sampled_from(["debug", "info"]),
    )
)
def test_to_toml(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    """What a configuration is printed as is read as the same configuration."""
    file = tmp_path_factory.getbasetemp() / "printed.toml"
    file.write_bytes(config.to_toml().encode())
    assert load_config(file, {}, {}) == config


def test_check_config(tmp_path: Path) -> None:
    """--check-config prints the effective settings, which are read back as the same."""
    file = written(tmp_path, 'state_dir = "/file"\nmemory_mib = 512\nlog_level = "debug"')
    printed = arrakisd("--check-config", "--config", str(file), "--state", "/a \"b\" \\ 'c'")
    assert (printed.returncode, printed.stderr) == (0, "")
    again = written(tmp_path, printed.stdout)
    config = load_config(again, {}, {})
    assert (config.state_dir, config.memory_mib) == ("/a \"b\" \\ 'c'", 512)
    assert arrakisd("--check-config", "--config", str(again)).stdout == printed.stdout


def test_message_of_command(tmp_path: Path) -> None:
    """The command ends with status 1, the error and its hint; not with a traceback."""
    ended = arrakisd("--config", str(written(tmp_path, "memry_mib = 1")))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[0].startswith("arrakisd: ")
    assert ended.stderr.splitlines()[1] == "hint: did you mean 'memory_mib'?"
