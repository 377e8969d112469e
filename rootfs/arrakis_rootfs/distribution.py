"""Getting a bare distribution for a base image to start from."""

import math
import platform

import trio

from arrakis_rootfs.buildah import Buildah, StepTracker
from arrakis_rootfs.commands import PRIVATE_NAMESPACES, require_tools, run_command
from arrakis_rootfs.errors import CommandError, ImageError

# Suite, and the components that hold what the base image installs.
_RELEASES = {
    "debian:12": ("bookworm", "main"),
    "debian:13": ("trixie", "main"),
    "ubuntu:24.04": ("noble", "main,universe"),
}
DISTRIBUTIONS = tuple(_RELEASES)

# How long a registry may take until it sends anything; the download itself takes what it takes.
_ANSWER_SECONDS = 10.0
_ANSWERED = "Getting image source signatures"


def default_distribution() -> str:
    """Return the distribution that this host can make most surely: its own family's."""
    try:
        host = platform.freedesktop_os_release()["ID"]
    except (OSError, KeyError):
        host = ""
    return "ubuntu:24.04" if host == "ubuntu" else "debian:12"


async def provide_distribution(buildah: Buildah, distribution: str, tracker: StepTracker) -> str:
    """Return the local name of a bare distribution, fetching or making it when it is not there.

    From a container registry where one answers, otherwise from the distribution's packages with
    mmdebstrap; mirrors and registries are those the host's tools are set up for.
    """
    if distribution not in _RELEASES:
        raise ImageError(f"{distribution!r} is none of {', '.join(DISTRIBUTIONS)}")
    reference = f"localhost/arrakis-distribution:{distribution.replace(':', '-')}"
    if await buildah.has_image(reference):
        return reference
    if not await _pull(buildah, distribution, reference, tracker):
        await _bootstrap(buildah, distribution, reference, tracker)
    return reference


async def _pull(buildah: Buildah, distribution: str, reference: str, tracker: StepTracker) -> bool:
    tracker.tell(f"asking the registries for {distribution}")
    with trio.move_on_after(_ANSWER_SECONDS) as patience:

        def on_line(line: str) -> None:
            if _ANSWERED in line:
                patience.deadline = math.inf
            tracker.tell(line)

        try:
            await buildah.run("pull", distribution, on_line=on_line)
            await buildah.run("tag", distribution, reference)
        except CommandError:
            return False
        return True
    return False


async def _bootstrap(
    buildah: Buildah, distribution: str, reference: str, tracker: StepTracker
) -> None:
    require_tools("mmdebstrap")
    tracker.tell(f"no registry has {distribution}: making it from packages with mmdebstrap")
    async with buildah.mounted("scratch") as (container, tree):
        suite, components = _RELEASES[distribution]
        await run_command(
            [
                *PRIVATE_NAMESPACES,
                # Ubuntu does not count apt among what every system needs.
                *("mmdebstrap", "--variant=minbase", "--include=apt"),
                *(f"--components={components}", suite, str(tree)),
            ],
            on_line=tracker.tell,
            environment={"TMPDIR": str(buildah.scratch)},
        )
        tracker.tell(f"importing {distribution}")
        await buildah.run("commit", "--quiet", container, reference)
