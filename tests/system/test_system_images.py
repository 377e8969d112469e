"""What an image's Dockerfile sets, as seen from the machines that come from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_guest import ask

from arrakis import NotFoundError, Sandbox, SandboxManager

pytestmark = pytest.mark.vm

_DOCKERFILE = """\
FROM base
ENV GREETING="hello, world" PATH=/opt/tools:/usr/sbin:/usr/bin:/sbin:/bin
RUN mkdir /opt/tools && echo 'echo tool for $GREETING' > /opt/tools/my-tool && \
    chmod +x /opt/tools/my-tool && sed -i '1i #!/bin/bash' /opt/tools/my-tool
"""


def check(sandbox: Sandbox) -> None:
    """Look at the environment of commands of every kind."""
    assert ask(sandbox, "echo $GREETING") == "hello, world"
    assert sandbox.run_cmd("my-tool")["output"] == "tool for hello, world\n"
    assert sandbox.run(["my-tool"]).text == "tool for hello, world\n"
    assert sandbox.run(["my-tool"], env={"GREETING": "mine"}).text == "tool for mine\n"
    assert sandbox.run(["my-tool"], user="elara").text == "tool for hello, world\n"


def test_image_deleted_while_it_boots(manager: SandboxManager, tmp_path: Path) -> None:
    """Who boots an image that is deleted meanwhile gets a machine of it, and others none."""
    (tmp_path / "Dockerfile").write_text("FROM base\nRUN touch /short-lived\n")
    manager.images.build(tmp_path, name="short-lived")
    first = manager._client.open("vm.start", {"name": "first", "image": "short-lived"})
    assert first.take(60) is not None  # it tells that it boots
    manager.images.delete("short-lived")
    while first.take(600) is not None:
        pass
    with manager.restore("again", manager.get("first").snapshot("of-short-lived")) as again:
        assert ask(again, "ls /short-lived") == "/short-lived"
    with pytest.raises(NotFoundError, match="short-lived"):
        manager.start_sandbox("second", image="short-lived")
    manager.destroy_all()
    manager.snapshots.delete("of-short-lived")
    (template,) = (one for one in manager.templates.list() if one.image == "short-lived")
    manager.templates.delete(template.id)


def test_environment_of_an_image(manager: SandboxManager, tmp_path: Path) -> None:
    """ENV is there in a start, in a snapshot's restore, in forks; the caller's own goes first."""
    (tmp_path / "Dockerfile").write_text(_DOCKERFILE)
    manager.images.build(tmp_path, name="with-env")
    try:
        with manager.start_sandbox("first", image="with-env", entry_point="my-tool > said") as one:
            check(one)
            assert ask(one, "cat said") == "tool for hello, world"
            snapshot = one.snapshot()
            for fork in one.fork(2):
                check(fork)
        with manager.restore("restored", snapshot) as restored:
            check(restored)
            with manager.restore("again", restored.snapshot()) as again:
                check(again)
        with manager.start_sandbox("plain") as plain:
            assert ask(plain, "echo ${GREETING-none}") == "none"
    finally:
        manager.destroy_all()
        for one_snapshot in manager.snapshots.list():
            manager.snapshots.delete(one_snapshot.id)
        manager.images.delete("with-env")
