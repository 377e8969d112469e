"""`python -m arrakis_kernel`: make sure that a guest kernel is in the machine's cache."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from arrakis_kernel.cache import cache_directory
from arrakis_kernel.errors import KernelError, KernelStoreError
from arrakis_kernel.small import ensure_small_kernel, find_small_kernel
from arrakis_kernel.store import KernelFiles, ensure_kernel, find_current_kernel


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="arrakis_kernel", description=__doc__)
    parser.add_argument(
        "which",
        nargs="?",
        choices=("stock", "small"),
        default="stock",
        help="the distribution's own (the default), or one that is built here from its source",
    )
    parser.add_argument("--cache", type=Path, default=cache_directory(), help="cache directory")
    parser.add_argument(
        "--check", action="store_true", help="make nothing; fail if the kernel is not there"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    try:
        kernel = _find(arguments.which, arguments.cache.absolute(), check=arguments.check)
    except KernelError as error:
        _tell(f"arrakis_kernel: {error}")
        return 1
    if arguments.json:
        result = json.dumps({key: str(value) for key, value in asdict(kernel).items()})
    else:
        result = f"kernel {kernel.version} in {kernel.vmlinux.parent}"
    sys.stdout.write(f"{result}\n")
    return 0


def _find(which: str, cache: Path, *, check: bool) -> KernelFiles:
    find, ensure = {
        "stock": (find_current_kernel, ensure_kernel),
        "small": (find_small_kernel, ensure_small_kernel),
    }[which]
    if not check:
        return ensure(cache, _tell)
    kernel = find(cache)
    if kernel is None:
        raise KernelStoreError(f"the kernel has to be made in {cache}")
    return kernel


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
