"""Progress of long work on stderr: bars on a terminal, plain lines elsewhere.

rich is imported when there is something to show, which most starts never have.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

import click

from .output import is_terminal, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from arrakis import Progress, Transfer


class Steps:
    """Shows the steps of a start or a build; call it with each `Progress`."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._last = ""

    def __call__(self, progress: Progress) -> None:
        """Show a step."""
        text = printable(progress.text)
        if not is_terminal(sys.stderr):
            counted = f"[{progress.step}/{progress.total}] " if progress.total else ""
            if (line := counted + text) != self._last:
                click.echo(line, err=True)
                self._last = line
            return
        if self._bars is None or self._task is None:
            self._bars = _step_bars()
            self._task = self._bars.add_task("", total=None)
            self._bars.start()
        self._bars.update(
            self._task,
            description=text,
            completed=progress.step,
            total=progress.total or None,
        )

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


class Copying:
    """Shows a copy; call it with each `Transfer`. Says nothing if stderr is no terminal."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def __call__(self, transfer: Transfer) -> None:
        """Show how far a copy is."""
        if not is_terminal(sys.stderr):
            return
        if self._bars is None or self._task is None:
            self._bars = _copy_bars()
            self._task = self._bars.add_task("", total=None)
            self._bars.start()
        self._bars.update(
            self._task,
            description=printable(transfer.path)[-40:],
            completed=transfer.bytes,
            total=transfer.total,
        )

    def __enter__(self) -> Copying:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def _step_bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _copy_bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
