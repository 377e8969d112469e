"""Which version of a hypervisor's program is installed."""

from __future__ import annotations

import re
import shutil
import subprocess

from arrakis_rpc.errors import UnsupportedError


def installed_version(binary: str, pattern: str, hint: str) -> str:
    """Give what ``pattern``, whose first group it is, finds in what ``--version`` prints. Blocks.

    Raises `UnsupportedError` if there is no such program, with ``hint`` how to get it, or if it
    does not tell.
    """
    path = shutil.which(binary)
    if path is None:
        raise UnsupportedError(f"{binary} is not installed", hint=hint)
    printed = subprocess.run([path, "--version"], capture_output=True, check=False)
    text = (printed.stdout + printed.stderr).decode(errors="replace")
    found = re.search(pattern, text, re.IGNORECASE | re.MULTILINE)
    if found is None:
        raise UnsupportedError(f"{path} does not tell its version: {text.strip()[:200]}")
    return found[1]
