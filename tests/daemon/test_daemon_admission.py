"""Room for VMs: first come, first served, for a while, and nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from arrakis_rpc.errors import ExhaustedError
from arrakisd.machines.admission import Admission, Need, Room
from arrakisd.settings.limits import LimitsConfig

_ONE = Need(100, 1)


def admission(**limits: float) -> Admission:
    """Of 1000 MiB and 4 vCPUs, if nothing else is said."""
    values = {"memory_mib": 1000, "memory_overcommit": 1.0, "vcpus": 4, "queue_timeout": 60.0}
    return Admission(LimitsConfig(**(values | limits)))


async def waiters(host: Admission, count: int) -> None:
    with trio.fail_after(30):
        while host.waiting != count:
            await trio.lowlevel.checkpoint()


async def test_order() -> None:
    """Who would fit does not overtake who came before, and gets its room after it."""
    host = admission()
    held = await host.room("held", Need(600, 1))
    rooms: dict[str, Room] = {}

    async def come(name: str, need: Need) -> None:
        rooms[name] = await host.room(name, need)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come, "large", Need(700, 1))
            await waiters(host, 1)
            nursery.start_soon(come, "small", Need(400, 1))
            await waiters(host, 2)
            assert host.unclaimed_mib == 1000 - 600 - 700 - 400
            for _ in range(2):  # the second time changes nothing
                held.give_back()
            await trio.testing.wait_all_tasks_blocked()
            assert list(rooms) == ["large"]
            rooms["large"].give_back()
    assert host.taken == Need(400, 1)


async def test_vcpus_and_overcommit() -> None:
    """vCPUs run out as memory does, of which more is given out than there is, but not to one."""
    host = admission(memory_overcommit=2.0, queue_timeout=0)
    rooms = await host.rooms(["a", "b", "c", "d"], Need(500, 1))
    assert host.free == Need(0, 0)
    rooms[0].give_back()
    with pytest.raises(ExhaustedError, match="500 MiB of memory and 1 vCPU;"):
        await host.room("more", Need(500, 2))
    with pytest.raises(ExhaustedError, match="one VM may have 1000 MiB at most"):
        await host.room("giant", Need(1001, 1))


async def test_in_vain(autojump_clock: trio.testing.MockClock) -> None:
    """After its time a caller is told what is missing and who has it, and the next one gets in."""
    host, told = admission(), list[str]()
    await host.room("hog", Need(600, 1))

    async def tell(text: str) -> None:
        told.append(text)

    async def come_next() -> None:
        await trio.sleep(1)
        await host.room("next", Need(400, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_next)
        with pytest.raises(ExhaustedError) as refusal:
            await host.room("late", Need(500, 1), tell)
    assert 60 <= trio.current_time() < 61
    assert told == ["waiting for 500 MiB of memory and 1 vCPU; free: 400 MiB of memory and 3 vCPUs"]
    assert refusal.value.vm == "late"
    assert refusal.value.detail == {"needed_mib": 500, "free_mib": 400}
    assert "hog" in (refusal.value.hint or "")


@pytest.mark.parametrize("steps", range(8))
async def test_cancelled(steps: int) -> None:
    """Cancelled at whatever moment, also when room comes, a caller keeps and blocks nothing."""
    host = admission()
    held = await host.room("held", Need(600, 1))
    room: Room | None = None

    async def come(scope: trio.CancelScope) -> None:
        nonlocal room
        with scope:
            room = await host.room("cancelled", Need(700, 1))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(come, scope)
            if steps % 2:
                await waiters(host, 1)
            actions: list[Callable[[], None]] = [scope.cancel, held.give_back]
            for action in actions if steps < 4 else actions[::-1]:
                action()
                if steps % 4 > 1:
                    await trio.testing.wait_all_tasks_blocked()
    if room is not None:
        room.give_back()
    assert (host.waiting, host.taken) == (0, Need(0, 0))


async def test_bounded_queue(autojump_clock: trio.testing.MockClock) -> None:
    """No more wait than may: the next one is refused at once."""
    host = admission(queue=1, queue_timeout=5)
    await host.room("hog", Need(1000, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_refused, host)
        await waiters(host, 1)
        with pytest.raises(ExhaustedError, match="1 others wait for that already"):
            await host.room("more", _ONE)
        assert trio.current_time() < 5
    assert host.waiting == 0


async def _refused(host: Admission) -> None:
    with pytest.raises(ExhaustedError, match="no more for 5 s"):
        await host.room("waits", _ONE)


async def test_other_limits() -> None:
    """Limits that become wider let in who waits; narrower ones leave who is there."""
    host = admission()
    await host.room("there", Need(900, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.room, "waits", Need(200, 1))
        await waiters(host, 1)
        host.change(LimitsConfig(memory_mib=1000, memory_overcommit=2.0, vcpus=4))
    host.change(LimitsConfig(memory_mib=500, memory_overcommit=1.0, vcpus=4))
    assert host.taken == Need(1100, 2)
    assert host.free == Need(-600, 2)
