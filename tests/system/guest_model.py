"""A guest of which the test knows what every file and a process's memory must hold."""

from __future__ import annotations

import hashlib
import json
import random

from attrs import evolve, frozen
from in_guest import ask
from real_daemon import wait_until

from arrakis import Sandbox

_SIZE = 2 * 2**20

# Keeps bytes that no file has, changes them as it is told, and tells their checksum.
_KEEPER = """
import hashlib, json, os, random, signal
data = bytearray({size})
def act(*_):
    with open("/dev/shm/order") as file:
        for position, size, seed in json.load(file):
            data[position : position + size] = random.Random(seed).randbytes(size)
    with open("/dev/shm/told.new", "w") as file:
        file.write(hashlib.sha256(data).hexdigest())
    os.rename("/dev/shm/told.new", "/dev/shm/told")
signal.signal(signal.SIGUSR1, act)
with open("/dev/shm/keeper", "w") as file:
    file.write(str(os.getpid()))
while True:
    signal.pause()
""".replace("{size}", str(_SIZE))

Order = tuple[int, int, int]


@frozen
class Model:
    """What a guest must hold: files, on the disk and in memory, and orders to the keeper."""

    files: dict[str, bytes]
    orders: tuple[Order, ...] = ()

    def kept(self) -> bytes:
        """What the keeper must have in its memory."""
        data = bytearray(_SIZE)
        for position, size, seed in self.orders:
            data[position : position + size] = random.Random(seed).randbytes(size)
        return bytes(data)


def start_keeper(sandbox: Sandbox) -> Model:
    """Start the process that keeps bytes in its memory; give what the guest holds then."""
    sandbox.files.write("/root/keeper.py", _KEEPER)
    sandbox.run_cmd("exec python3 -S /root/keeper.py", blocking=False)
    wait_until(lambda: sandbox.files.exists("/dev/shm/keeper"), 60)
    return Model({})


def change(sandbox: Sandbox, model: Model, chance: random.Random) -> Model:
    """Change something in a guest; give what it holds then."""
    path = chance.choice(["/root/one", "/root/two", "/root/three", "/dev/shm/one", "/dev/shm/two"])
    if path in model.files and chance.random() < 0.2:
        sandbox.files.remove(path)
        return evolve(model, files={name: c for name, c in model.files.items() if name != path})
    if chance.random() < 0.3:
        size = chance.randrange(1, 200_000)
        seed = chance.choice([1, 2, chance.randrange(2**32)])  # often what was there before
        order = (chance.choice([0, chance.randrange(_SIZE - size)]), size, seed)
        _order(sandbox, [order])
        return evolve(model, orders=(*model.orders, order))
    content = chance.randbytes(chance.choice([1, 5_000, 300_000]))
    sandbox.files.write(path, content)
    if chance.random() < 0.5:
        ask(sandbox, "sync")
    return evolve(model, files={**model.files, path: content})


def check(sandbox: Sandbox, model: Model) -> None:
    """Compare what a guest holds with what it must hold, read from its disk once more."""
    ask(sandbox, "sync; echo 3 > /proc/sys/vm/drop_caches")
    found = {
        f"{directory}/{entry.name}"
        for directory in ("/root", "/dev/shm")
        for entry in sandbox.files.list(directory)
        if entry.name in ("one", "two", "three")
    }
    assert found == model.files.keys()
    for path, content in model.files.items():
        assert sandbox.files.read(path) == content, path
    assert _order(sandbox, []) == hashlib.sha256(model.kept()).hexdigest()


def _order(sandbox: Sandbox, orders: list[Order]) -> str:
    """Have the keeper change its bytes; give their checksum."""
    if sandbox.files.exists("/dev/shm/told"):
        sandbox.files.remove("/dev/shm/told")
    sandbox.files.write("/dev/shm/order", json.dumps(orders).encode())
    ask(sandbox, "kill -USR1 $(cat /dev/shm/keeper)")
    wait_until(lambda: sandbox.files.exists("/dev/shm/told"), 60)
    return sandbox.files.read_text("/dev/shm/told")
