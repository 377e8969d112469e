"""What can go wrong with images.

ImageError
├── ImageNameError        not a legal image name
├── ImageNotFoundError    no image of that name or digest
├── ImageDamagedError     what is stored is not what was published
├── ImageSpaceError       the disk is full
├── ImageContentError     the result could not run as a machine
├── ToolMissingError      an external program is not installed
└── CommandError          an external program failed
    └── ImageBuildError       ... as a step of a Dockerfile
"""

import shlex
import textwrap
from collections.abc import Sequence


class ImageError(Exception):
    """Root of this package's errors."""


class ImageNameError(ImageError, ValueError):
    """Not a legal image name."""


class ImageNotFoundError(ImageError, LookupError):
    """No image of that name or digest."""


class ImageDamagedError(ImageError):
    """A stored image is not what was published; the message names the file."""


class ImageSpaceError(ImageError):
    """The disk is full; the message names the directory and what is left."""


class ImageContentError(ImageError):
    """The built tree could not run as a machine."""


class ToolMissingError(ImageError):
    """An external program is not installed; the message names the package that holds it."""


class CommandError(ImageError):
    """An external program failed."""

    def __init__(self, reason: str, command: Sequence[str], output: Sequence[str] = ()) -> None:
        self.reason = reason
        self.command = shlex.join(command)
        """A line that can be pasted into a shell."""
        self.output = tuple(output)
        """The last lines that the program wrote to each of its outputs, as they came."""
        super().__init__("\n".join([reason, *self.output, f"the command was: {self.command}"]))


class ImageBuildError(CommandError):
    """A step of a Dockerfile failed."""

    def __init__(
        self, step: str | None, reason: str, command: Sequence[str], output: Sequence[str]
    ) -> None:
        self.step = step
        """The failing instruction, None when the build failed before its first one."""
        # Steps that install packages are long; the beginning is enough to tell which it was.
        place = f"step {textwrap.shorten(step, 120)!r}" if step else "the build"
        super().__init__(f"{place} failed with {reason}", command, output)
        self.reason = reason
