"""Repair a program by searching the tree of its possible states, each one a machine.

A small package in a sandbox has a test suite that fails. There are patches, some of which help,
some of which only together, and some of which do harm. From the most promising state the search
tries every patch that was not applied there yet, each in a fork of the running machine, keeps the
best two states, and goes on until all tests pass. Nothing is ever undone: what does not help is
destroyed, and the other states are as they were.

Run it while a daemon runs::

    .venv/bin/python examples/tree_search.py
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from arrakis import Branch, ExplorationFailedError, Sandbox, SandboxManager

PROGRAM = """\
def parse(text):
    return [int(word) for word in text.split(" ")]

def mean(numbers):
    return sum(numbers) // len(numbers)

def median(numbers):
    return numbers[len(numbers) // 2]
"""

# Each test prints a line; there is no need for more of a framework.
TESTS = """\
from stats import mean, median, parse

CASES = {
    "parse": lambda: parse("3 1 2") == [3, 1, 2],
    "parse commas": lambda: parse("3,1, 2") == [3, 1, 2],
    "mean": lambda: mean([1, 2]) == 1.5,
    "mean of text": lambda: mean(parse("1,2")) == 1.5,
    "median": lambda: median([3, 1, 2]) == 2,
    "even median": lambda: median([4, 1, 2, 3]) == 2.5,
}
for name, holds in CASES.items():
    try:
        verdict = "ok" if holds() else "FAILED"
    except Exception as error:
        verdict = f"FAILED {error!r}"
    print(verdict, name)
"""

# What to replace, and by what. A model would think these up; here they are given.
PATCHES = {
    "split at commas": ('text.split(" ")', 'text.split(",")'),
    "commas are spaces": ('text.split(" ")', 'text.replace(",", " ").split()'),
    "divide exactly": ("sum(numbers) // len(numbers)", "sum(numbers) / len(numbers)"),
    "sort first": ("return numbers[len", "numbers = sorted(numbers)\n    return numbers[len"),
    "average the middle": (
        "return numbers[len(numbers) // 2]",
        "return (numbers[(len(numbers) - 1) // 2] + numbers[len(numbers) // 2]) / 2",
    ),
}


def patch(name: str) -> Callable[[Sandbox], str]:
    """Make an action that applies a patch and gives its name."""

    def apply(sandbox: Sandbox) -> str:
        before, after = PATCHES[name]
        text = sandbox.files.read_text("stats.py")
        if before not in text:
            raise ValueError("does not apply")
        sandbox.files.write("stats.py", text.replace(before, after))
        return name

    return apply


def passing(sandbox: Sandbox) -> float:
    """Run the tests, and count those that pass."""
    return sandbox.run("python3 -S -B tests.py", check=True).text.count("ok ")


def search(sandbox: Sandbox) -> tuple[Sandbox, list[str]]:
    """Find a state in which all tests pass; give it, and the patches that lead there."""
    wanted, order = TESTS.count("lambda"), count()
    # The states to go on from, the most promising first; the number keeps equal ones in order.
    states: list[tuple[float, int, Sandbox, list[str]]] = [(0, next(order), sandbox, [])]
    try:
        while states:
            _, _, state, applied = states[0]
            todo = [name for name in PATCHES if name not in applied]
            print(" > ".join(applied) or "the program as it is")
            try:
                found = state.explore([patch(name) for name in todo], passing, keep=2)
            except ExplorationFailedError:  # no patch applies any more: a dead end
                heapq.heappop(states)
                state.destroy()
                continue
            heapq.heappop(states)  # it is no more: the best branch has taken its place
            for name, branch in zip(todo, found.branches, strict=True):
                print(f"  {describe(branch, wanted)}  {name}")
            for branch in found.kept:
                assert branch.sandbox is not None
                assert branch.score is not None
                path = [*applied, branch.result]
                heapq.heappush(states, (-branch.score, next(order), branch.sandbox, path))
            if found.best.score == wanted:
                _, _, repaired, path = heapq.heappop(states)
                return repaired, path
    finally:
        for _, _, state, _ in states:
            state.destroy()
    raise SystemExit("no combination of these patches passes all tests")


def describe(branch: Branch, wanted: int) -> str:
    """Say in a few characters what came of a branch."""
    if branch.score is None:
        return f"  - {branch.error}"
    return f"{branch.score:.0f}/{wanted}{'  kept' if branch.sandbox else '      '}"


def main() -> None:
    """Start a machine with the program, and repair it."""
    sandbox = SandboxManager().start_sandbox("tree-search", egress="none", ports=[])
    sandbox.files.write("stats.py", PROGRAM)
    sandbox.files.write("tests.py", TESTS)
    repaired, path = search(sandbox)
    with repaired:
        print(f"repaired by: {', '.join(path)}\n")
        print(repaired.files.read_text("stats.py"))


if __name__ == "__main__":
    main()
