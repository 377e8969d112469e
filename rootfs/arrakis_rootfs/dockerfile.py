"""Reading from a Dockerfile which images it needs."""

import re
import shlex
from collections.abc import Mapping

from attrs import frozen

_ARG = re.compile(r"ARG\s+(?P<name>\w+)(?:=(?P<value>\S*))?", re.IGNORECASE)
_FROM = re.compile(r"FROM\s+(?:--\S+\s+)*(?P<image>\S+)(?:\s+AS\s+(?P<stage>\S+))?", re.IGNORECASE)
_COPY = re.compile(r"COPY\s+(?:--\S+\s+)*--from=(?P<image>\S+)\s.*", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:(?P<plain>\w+)|\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\})")


@frozen
class NeededImages:
    """The images that a Dockerfile refers to; references to its own stages are followed."""

    parent: str | None
    """What the last stage, and so the result, descends from."""
    all: frozenset[str]


def find_needed_images(dockerfile: str, build_args: Mapping[str, str]) -> NeededImages:
    """Return the images that must be at hand to build a Dockerfile.

    No validation: buildah does the real parsing, and complains.
    """
    variables: dict[str, str] = {}
    stages: dict[str, str] = {}
    needed: set[str] = set()
    parent: str | None = None
    for line in _logical_lines(dockerfile):
        # Only an ARG before the first FROM can be used in one.
        if parent is None and (match := _ARG.fullmatch(line)):
            name = match["name"]
            variables[name] = build_args.get(name, _unquote(match["value"] or ""))
        elif match := _FROM.fullmatch(line):
            image = _substitute(match["image"], variables)
            parent = stages.get(image, image)
            needed.add(parent)
            if match["stage"]:
                stages[match["stage"]] = parent
        elif match := _COPY.fullmatch(line):
            needed.add(stages.get(match["image"], match["image"]))
    return NeededImages(parent, frozenset(needed))


def _logical_lines(dockerfile: str) -> list[str]:
    joined = re.sub(r"\\[ \t]*\n", " ", dockerfile)
    lines = (line.strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _substitute(text: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(
        lambda match: variables.get(match["plain"] or match["braced"]) or match["default"] or "",
        text,
    )


def _unquote(value: str) -> str:
    try:
        return "".join(shlex.split(value))
    except ValueError:
        return value
