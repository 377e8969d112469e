"""Tokens: kept without their secrets, told from wrong ones, and gone when they are revoked."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
import trio
import trio.testing
from real_daemon import Daemon

from arrakis import AlreadyExistsError, NotFoundError, SandboxManager
from arrakis_rpc.errors import AccessDeniedError, ExhaustedError
from arrakisd.service.call import Call
from arrakisd.service.token import TokenOperations
from arrakisd.storage import tokens as tokens_module
from arrakisd.storage.tokens import TokenStore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def store(directory: Path) -> TokenStore:
    return TokenStore(directory)


def reread(directory: Path) -> TokenStore:
    """What the next daemon finds."""
    store = TokenStore(directory)
    store.load()
    return store


async def test_a_token_is_known_by_its_name_to_this_daemon_and_the_next(
    store: TokenStore, directory: Path
) -> None:
    """Each secret gives its own name, after a restart as well, and no other text gives any."""
    one, two = await store.create("one"), await store.create("two")
    for known in (store, reread(directory)):
        assert (known.verify(one), known.verify(two)) == ("one", "two")
        for wrong in ("", "one", one[:-1], one + "x", one.swapcase(), one[4:], "ä", "\udc80"):
            assert known.verify(wrong) is None


async def test_secrets_are_long_and_differ(store: TokenStore) -> None:
    """A secret has 256 random bits, in characters that a URL and a header take as they are."""
    secrets = {await store.create(f"t{number}") for number in range(20)}
    assert len(secrets) == 20
    assert all(re.fullmatch(r"ark_[A-Za-z0-9_-]{43}", secret) for secret in secrets)


async def test_what_is_kept_is_private_and_holds_no_secret(
    store: TokenStore, directory: Path
) -> None:
    """Nobody else may read the files, and whoever can learns no token from them."""
    secret = await store.create("one")
    (file,) = directory.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in file.read_text()
    assert secret[4:] not in file.read_text()
    assert secret not in repr(vars(store))


async def test_a_name_is_taken_once(store: TokenStore) -> None:
    """Of two who want a name one gets it, also when both ask at once."""
    won: list[str] = []
    lost: list[AlreadyExistsError] = []

    async def ask() -> None:
        try:
            won.append(await store.create("one"))
        except AlreadyExistsError as error:
            lost.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert (len(won), len(lost)) == (1, 4)
    assert store.verify(won[0]) == "one"
    await store.revoke("one")
    again = await store.create("one")
    assert (store.verify(won[0]), store.verify(again)) == (None, "one")


async def test_a_revoked_token_lets_nobody_in_and_cuts_off_who_is(
    store: TokenStore, directory: Path
) -> None:
    """What runs for a token is cancelled when it is revoked, and what begins afterwards as well."""
    secret, other = await store.create("one"), await store.create("two")
    ended: list[str] = []

    async def work(name: str) -> None:
        with store.while_valid(name):
            await trio.sleep_forever()
        ended.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, "one")
        nursery.start_soon(work, "two")
        await trio.testing.wait_all_tasks_blocked()
        await store.revoke("one")
        assert store.verify(secret) is None
        nursery.start_soon(work, "one")
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["one", "one"]
        nursery.cancel_scope.cancel()
    with pytest.raises(NotFoundError):
        await store.revoke("one")
    assert reread(directory).verify(secret) is None
    assert reread(directory).verify(other) == "two"


async def test_times_are_kept(
    store: TokenStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a token was made and last used is known, to a minute, and to the next daemon as well."""
    clock = [1_000_000.0]
    monkeypatch.setattr(tokens_module.time, "time", lambda: clock[-1])
    secret = await store.create("one")
    assert [(one.created, one.used) for one in reread(directory).list()] == [(clock[0], None)]
    for seconds, noted in ((10, 10), (69, 10), (70, 70)):
        clock.append(clock[0] + seconds)
        store.verify(secret)
        for known in (store, reread(directory)):
            (one,) = known.list()
            assert (one.created, one.used) == (clock[0], clock[0] + noted)


async def test_half_written_and_damaged_files_let_nobody_in(
    store: TokenStore, directory: Path
) -> None:
    """What a crash left is removed; a damaged token is listed, and can be revoked."""
    secret = await store.create("good")
    (directory / ".half").write_text("{")
    kept = json.loads((directory / "good").read_text())
    (directory / "bad").write_text("{")
    (directory / "empty").write_text(json.dumps({**kept, "digest": ""}))
    known = reread(directory)
    assert [one.name for one in known.list()] == ["bad", "empty", "good"]
    assert known.verify(secret) == "good"
    assert known.verify("") is None
    await known.revoke("bad")
    assert sorted(path.name for path in directory.iterdir()) == ["empty", "good"]


async def test_a_token_that_cannot_be_stored_does_not_exist(tmp_path: Path) -> None:
    """Without room there is no token, and its name stays free."""
    store = TokenStore(Path("/dev/full/tokens"))
    with pytest.raises((ExhaustedError, OSError)):
        await store.create("one")
    assert store.list() == []


async def test_who_came_by_http_can_neither_make_list_nor_revoke_tokens(store: TokenStore) -> None:
    """A token gives every right but that to the tokens; the error says where to go instead."""
    operations = TokenOperations(store)
    remote = Call(None, "token=one 10.0.0.1")  # type: ignore[arg-type]
    for operation in (operations.token_create, operations.token_list, operations.token_revoke):
        with pytest.raises(AccessDeniedError, match="Unix socket") as caught:
            await operation(None, remote)  # type: ignore[arg-type]
        assert "host" in str(caught.value.hint)


def test_tokens_are_made_listed_and_revoked_over_the_socket(daemon: Daemon) -> None:
    """The SDK does all three, and no secret is in the daemon's log or state."""
    with SandboxManager(socket=daemon.socket) as manager:
        secret = manager.tokens.create("laptop")
        with pytest.raises(AlreadyExistsError, match="'laptop'"):
            manager.tokens.create("laptop")
        assert ("laptop", None) in [(one.name, one.used) for one in manager.tokens.list()]
        assert (daemon.state / "tokens" / "laptop").stat().st_mode & 0o777 == 0o600
        manager.tokens.revoke("laptop")
        assert "laptop" not in [one.name for one in manager.tokens.list()]
        with pytest.raises(NotFoundError, match="'laptop'"):
            manager.tokens.revoke("laptop")
    assert "token.create" in daemon.log_text()
    assert secret not in daemon.log_text()
