"""Output that is more than anybody keeps: for a slow reader, and of any size."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from real_daemon import Daemon, wait_until

from arrakis import SandboxManager

pytestmark = pytest.mark.vm

# More than the memory of a small guest; and no more, since under emulation some 10 MiB/s pass.
_MEMORY_MIB = 256
_OUTPUT_MIB = 320


@pytest.mark.slow  # the proxy's own tests have it with a clock that jumps
def test_slow_reader_of_a_command_with_a_limit(manager: SandboxManager) -> None:
    """What a command wrote until its limit killed it is there for who reads a long time later."""
    with (
        manager.start_sandbox("slow") as sandbox,
        sandbox.exec("seq 1 100000000", timeout=1.0) as process,
    ):
        time.sleep(14)
        output = b"".join(data for _, data in process)
        completed = process.wait()
    assert completed.timed_out
    assert len(output) > 2**20
    # Its last line may be cut, since the command was killed in the middle of it.
    numbers = output.split(b"\n")[:-1]
    assert numbers == [b"%d" % number for number in range(1, len(numbers) + 1)]


def own_memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_output_larger_than_memory(manager: SandboxManager, daemon: Daemon) -> None:
    """More output than the guest has memory streams through guest, daemon and client in little."""
    with manager.start_sandbox("loud", memory_mib=_MEMORY_MIB) as sandbox:
        sandbox.run("head -c 8M /dev/zero")
        daemon_before, own_before = daemon.memory_mib(), own_memory_mib()
        size, most = 0, 0.0
        with sandbox.exec(f"head -c {_OUTPUT_MIB}M /dev/zero") as process:
            for number, (stream, data) in enumerate(process):
                assert stream == "stdout"
                assert not data.strip(b"\0")
                size += len(data)
                if number % 64 == 0:
                    most = max(
                        most, daemon.memory_mib() - daemon_before, own_memory_mib() - own_before
                    )
            assert process.wait().ok
        assert size == _OUTPUT_MIB * 2**20
        assert most < 32
        assert sandbox.health().memory_available > 2**24
    (template,) = [one for one in manager.templates.list() if one.memory_mib == _MEMORY_MIB]
    wait_until(lambda: not manager.list_all(), 5)
    manager.templates.delete(template.id)
