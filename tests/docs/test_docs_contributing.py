"""The examples in CONTRIBUTING.md fit the code that they are to be added to."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from docs_pages import ROOT, marked_block

from arrakis_rpc import daemon_api, errors
from arrakis_rpc.operations import DAEMON, Operation

STEPS = ("type", "row", "handler", "method", "verb", "test")


def test_the_smallest_driver_satisfies_the_types(tmp_path: Path) -> None:
    """mypy --strict takes the example for a driver that can be registered."""
    example = tmp_path / "example_driver.py"
    example.write_text(
        "from arrakisd.host.vmm.interface import DriverFactory\n"
        + marked_block("CONTRIBUTING.md", "driver")
        + '\n\nDRIVERS: dict[str, DriverFactory] = {"example": ExampleDriver}\n'
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", str(example)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("step", STEPS)
def test_each_step_of_the_new_operation_is_python(step: str) -> None:
    """Every block of the example can be parsed."""
    ast.parse(marked_block("CONTRIBUTING.md", f"operation {step}"))


def test_the_new_operation_is_a_row_like_the_others() -> None:
    """The row can be made from the types, is not there yet, and names its handler."""
    operation = _new_operation()
    assert operation.method not in DAEMON
    handler = marked_block("CONTRIBUTING.md", "operation handler")
    assert f"async def {operation.method.replace('.', '_')}(self," in handler
    assert f'call("{operation.method}",' in marked_block("CONTRIBUTING.md", "operation method")


def _new_operation() -> Operation:
    from attrs import frozen

    types = {"frozen": frozen}
    exec(marked_block("CONTRIBUTING.md", "operation type"), types)
    names = {**vars(daemon_api), **types}
    row = marked_block("CONTRIBUTING.md", "operation row")
    scope = {"Operation": Operation, "d": _Namespace(names), "e": errors}
    made = eval(row, scope)
    assert isinstance(made, Operation)
    return made


class _Namespace:
    def __init__(self, names: dict[str, object]) -> None:
        self.__dict__.update(names)
