"""`python -m arrakis_kernel`: make sure that the guest kernel is in the machine's cache."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from arrakis_kernel.cache import cache_directory
from arrakis_kernel.errors import KernelError
from arrakis_kernel.store import ensure_kernel


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="arrakis_kernel", description=__doc__)
    parser.add_argument("--cache", type=Path, default=cache_directory(), help="cache directory")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    try:
        kernel = ensure_kernel(arguments.cache.absolute(), _tell)
    except KernelError as error:
        _tell(f"arrakis_kernel: {error}")
        return 1
    if arguments.json:
        result = json.dumps({key: str(value) for key, value in asdict(kernel).items()})
    else:
        result = f"kernel {kernel.version} in {kernel.vmlinux.parent}"
    sys.stdout.write(f"{result}\n")
    return 0


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
