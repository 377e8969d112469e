import os
import sys
from pathlib import Path

import pytest
import trio
from image_helpers import running

from arrakis_rootfs import CommandError, ImageSpaceError, ToolMissingError
from arrakis_rootfs.commands import PRIVATE_NAMESPACES, run_command


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def until(file: Path) -> str:
    """Wait in a script for a file that the test makes."""
    return f"until [ -e {file} ]; do sleep 0.05; done"


async def test_lines_come_while_the_program_runs(tmp_path: Path) -> None:
    """Each line of both outputs is handed on at once; only standard output is returned."""
    seen: list[str] = []
    heard = tmp_path / "heard"

    def on_line(line: str) -> None:
        seen.append(line)
        if sorted(seen) == ["one", "two"]:
            heard.touch()

    script = f"echo one; echo two >&2; {until(heard)}; printf 'three\\rfour'"
    with trio.fail_after(60):
        assert await run_command(shell(script), on_line=on_line) == ["one", "three", "four"]
    assert sorted(seen) == ["four", "one", "three", "two"]


async def test_failure_can_be_repeated_by_hand() -> None:
    """The error carries the status, the last lines, and a line that a shell takes as it is."""
    with pytest.raises(CommandError) as raised:
        await run_command(shell("seq 100; echo 'it broke' >&2; exit 7"))
    assert raised.value.reason == "exit status 7"
    assert raised.value.command == "sh -c 'seq 100; echo '\"'\"'it broke'\"'\"' >&2; exit 7'"
    assert [line for line in raised.value.output if line != "it broke"] == [
        str(number) for number in range(81, 101)
    ]
    assert "it broke" in raised.value.output


async def test_noise_does_not_hide_the_reason(tmp_path: Path) -> None:
    """What a program says on one output is in the error, however much it says on the other."""
    for noise, reason in (("1", "2"), ("2", "1")):
        heard = tmp_path / noise
        script = f"echo 'it broke' >&{reason}; {until(heard)}; seq 1000 >&{noise}; exit 7"
        with trio.fail_after(60), pytest.raises(CommandError) as raised:
            await run_command(shell(script), on_line=lambda _: heard.touch())  # noqa: B023
        assert raised.value.output[0] == "it broke"
        assert raised.value.output[-1] == "1000"


async def test_signal_is_named() -> None:
    """A program that was killed is reported as such."""
    with pytest.raises(CommandError, match="signal SIGKILL"):
        await run_command(shell("kill -9 $$"))


async def test_missing_program_names_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error for a program that is not there says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match=r"apt-get install .* erofs-utils"):
        await run_command(["mkfs.erofs", "a", "b"])


async def test_full_disk_is_recognised() -> None:
    """A program that failed for want of space raises the error for just that."""
    with pytest.raises(ImageSpaceError, match="/dev/full"):
        await run_command(["dd", "if=/dev/zero", "of=/dev/full", "count=1"])


async def test_endless_line_stays_bounded() -> None:
    """A program that writes megabytes without a line end is cut into lines."""
    lengths: list[int] = []
    command = [sys.executable, "-c", "print('x' * 5_000_000, end='')"]
    await run_command(command, on_line=lambda line: lengths.append(len(line)))
    assert sum(lengths) == 5_000_000
    assert max(lengths) <= 3 * 65536


@pytest.mark.parametrize(
    "prefix", [pytest.param((), id="group"), pytest.param(PRIVATE_NAMESPACES, id="namespaces")]
)
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("sleep 31415", id="plain"),
        pytest.param("trap '' TERM; sleep 31415 & wait; sleep 31415", id="stubborn"),
        pytest.param("sleep 31415 & exit 0", id="left-behind"),
    ],
)
async def test_cancelled_program_takes_its_children_along(
    prefix: tuple[str, ...], script: str
) -> None:
    """Cancelled, the program and all that it started are killed."""
    with trio.move_on_after(0.5):
        await run_command([*prefix, *shell(script)])
    with trio.fail_after(60):
        while any("31415" in line for line in running().values()):  # noqa: ASYNC110
            await trio.sleep(0.01)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_namespaces_end_with_the_program() -> None:
    """What a program leaves running, even in a session of its own, ends when it does."""
    script = "setsid sleep 27182 >/dev/null 2>&1 & sleep 0.2"
    await run_command([*PRIVATE_NAMESPACES, *shell(script)])
    await trio.sleep(0.2)
    assert [line for line in running().values() if "27182" in line] == []
