"""Numbers that VMs are given for as long as they live: addresses and host ports.

A lease is a file that is named by the number and holds the VM's name. It is there before the
number is used, so that whoever starts after a crash knows what was whose.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from arrakis_rpc.errors import AlreadyExistsError, ExhaustedError


class Leases:
    """Gives out each number of a range to one VM at a time.

    A freed number is given out again only when all the others have had their turn: what
    still knows its former holder has time to forget.
    """

    def __init__(
        self, directory: Path, numbers: range, what: str, place: str, reserved: int | None = None
    ) -> None:
        self._directory = directory
        self._numbers = numbers
        self._what = what
        self._place = place
        self._reserved = reserved
        self._holders: dict[int, str] = {}
        self._next = 0

    def load(self, living: Collection[str] = ()) -> None:
        """Read what an earlier daemon gave out; drop what no living VM holds. Blocks."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for file in self._directory.iterdir():
            holder = file.read_text()
            if holder in living and file.name.isdecimal():
                self._holders[int(file.name)] = holder
            else:
                file.unlink()

    def take(self, holder: str, wanted: int | None = None, unless: Collection[int] = ()) -> int:
        """Lease a number: ``wanted``, or any other than those in ``unless``.

        Raises `AlreadyExistsError` if the wanted one is taken, `ExhaustedError` if all are.
        """
        if wanted is not None:
            if wanted in self._holders:
                raise AlreadyExistsError(
                    f"{self._what} {wanted} is that of VM '{self._holders[wanted]}'"
                )
            return self._give(wanted, holder)
        for _ in self._numbers:
            number = self._numbers[self._next]
            self._next = (self._next + 1) % len(self._numbers)
            if self.is_free(number) and number not in unless:
                return self._give(number, holder)
        raise ExhaustedError(
            f"there is no {self._what} left in {self._place}: {len(self._holders)} are taken",
            hint="destroy a VM, or widen the range in [network] of the configuration",
        )

    def _give(self, number: int, holder: str) -> int:
        (self._directory / str(number)).write_text(holder)
        self._holders[number] = holder
        return number

    def rename(self, number: int, holder: str) -> None:
        """Note another name of who has a number."""
        self._give(number, holder)

    def is_free(self, number: int) -> bool:
        """Whether a number is of the range, and nobody's."""
        return number in self._numbers and number != self._reserved and number not in self._holders

    def give_back(self, number: int) -> None:
        """Free a number."""
        self._holders.pop(number, None)
        (self._directory / str(number)).unlink(missing_ok=True)
