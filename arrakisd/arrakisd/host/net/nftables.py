"""Transactions on the kernel's packet filter, by libnftables.

In this process: starting ``nft`` would cost each start of a VM more than all the rest of its
network.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from arrakis_rpc.errors import UnsupportedError

# libnftables waits by select(2), which aborts the process for a file numbered 1024 or more. Room
# is left for what other threads open meanwhile.
_MOST_OPEN = 960
_CLONE_FILES = 0x400
_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON of <nftables/libnftables.h>


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise UnsupportedError(
            "libnftables is not installed", hint="apt-get install --no-install-recommends nftables"
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
    library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_get_output_buffer.argtypes = [ctypes.c_void_p]
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


def apply(commands: str) -> None:
    """Apply commands in the language of nft(8), all or none. Blocks for a millisecond.

    Works in the namespace of the thread that calls it. Raises `OSError` with what nftables
    says.
    """
    _run(commands)


def listing(command: str) -> bytes:
    """Give what a command lists, as JSON; see libnftables-json(5). As `apply` in all else."""
    return _run(command, _JSON)


def _run(commands: str, flags: int = 0) -> bytes:
    with Path(os.devnull).open() as probe:
        has_room = probe.fileno() < _MOST_OPEN
    if has_room:
        return _run_here(commands, flags)
    # A thread in a thread, because it ends with files of its own.
    with ThreadPoolExecutor(1, initializer=_forget_open_files) as thread:
        return thread.submit(_run_here, commands, flags).result()


def _forget_open_files() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for failed in (libc.unshare(_CLONE_FILES), libc.close_range(3, 2**31 - 1, 0)):
        if failed:
            raise OSError(ctypes.get_errno(), "cannot make room for netlink")


def _run_here(commands: str, flags: int) -> bytes:
    library = _library()
    # A context keeps its netlink socket, and with it the namespace of its maker.
    context = library.nft_ctx_new(0)
    try:
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_output_set_flags(context, flags)
        if library.nft_run_cmd_from_buffer(context, commands.encode()):
            said: bytes = library.nft_ctx_get_error_buffer(context) or b""
            raise OSError(f"nftables: {said.decode(errors='replace').strip()}")
        listed: bytes = library.nft_ctx_get_output_buffer(context) or b""
        return listed
    finally:
        library.nft_ctx_free(context)


def has_tables(name: str) -> bool:
    """Whether the tables of a name are there, in both families that are used. Blocks."""
    try:
        # One by one: of several tables in one buffer libnftables 1.0.6 looks at the last only.
        for family in ("inet", "bridge"):
            apply(f"list table {family} {name}")
    except OSError:
        return False
    return True
