import json
from pathlib import Path

import pytest
import trio
from image_helpers import TINY, Builder, assert_nothing_left, idle_buildah

from arrakis_rootfs import (
    Image,
    ImageBuildError,
    ImageContentError,
    ImageError,
    ImageNameError,
    ImageSpaceError,
    ImageStore,
    build_image,
)
from arrakis_rootfs.buildah import ImageBuildProgress
from arrakis_rootfs.commands import run_command

BASE_PROGRAMS = (
    "test $(id -u elara) = 1000",
    "test -u /usr/bin/sudo",
    "node --version",
    "npm --version",
    "git --version",
    "curl --version",
    "python3 -m venv /tmp/venv",
    "/tmp/venv/bin/pip --version",
    "echo 'int main() {}' | gcc -x c -o /tmp/a.out -",
    "/tmp/a.out",
    'python3 -I -S -c \'import sys; sys.path.insert(0, "/usr/lib/arrakis");'
    " import msgpack._cmsgpack, arrakis_agent'",
)
"""What a program in a sandbox may count on; run natively here, where it is quick."""


async def test_image_is_built_and_described(build: Builder, store: ImageStore) -> None:
    """A Dockerfile becomes an image whose manifest says what it is."""
    image = await build("tiny")
    assert store.list() == (image,)
    assert image.details.kind == "user"
    assert image.details.distribution == "tiny 3"
    assert image.details.parent == "scratch"
    assert image.details.parent_digest is None
    assert image.details.environment["GREETING"] == "hello"
    assert [(step.step, step.total) for step in build.steps if step.text.startswith("COPY")] == [
        (2, 4)
    ]
    assert build.steps[-1].text == "publishing the image"
    await store.verify(image)


async def test_image_descends_from_an_image_of_the_store(build: Builder) -> None:
    """FROM finds an image by its name, with its files and environment."""
    parent = await build("tiny")
    child = await build("child", 'FROM tiny\nRUN ["/bin/sh", "-c", "echo $GREETING > /said"]')
    assert (child.details.parent, child.details.parent_digest) == ("tiny", parent.digest)
    assert child.details.environment["GREETING"] == "hello"
    lines = await run_command(["dump.erofs", "--path=/said", str(child.path)])
    assert any(line.startswith("Size: 6 ") for line in lines), lines


async def test_environment_is_in_the_image(build: Builder, tmp_path: Path) -> None:
    """An image tells its agent what ENV set in its Dockerfile, and in those it descends from."""
    one, other = await build("tiny"), await build("tiny2", "FROM tiny\nENV GREETING=bye MORE=1")
    assert one.digest != other.digest  # though nothing else differs
    for image, expected in ((one, "hello"), (other, "bye")):
        target = tmp_path / image.digest
        await run_command(["fsck.erofs", f"--extract={target}", str(image.path)])
        told = json.loads((target / "usr/lib/arrakis/environment.json").read_text())
        assert told == image.details.environment
        assert told["GREETING"] == expected


async def test_link_in_place_of_the_environment(build: Builder, tmp_path: Path) -> None:
    """A Dockerfile cannot have a file of the host written through a link, nor a build succeed
    whose image would have none."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/environment.json").write_text("of the host")
    lib = build.context / "tree/usr/lib/arrakis"
    (lib / "environment.json").symlink_to(tmp_path / "host/environment.json")
    await build("tiny")
    (lib / "environment.json").unlink()
    (lib / "environment.json").mkdir()
    with pytest.raises(ImageContentError, match=r"environment\.json"):
        await build("tiny")
    assert (tmp_path / "host/environment.json").read_text() == "of the host"


async def test_parent_is_unpacked_again_when_buildah_lost_it(build: Builder) -> None:
    """An image that only the store still holds is imported with set-user-ID bits and ENV."""
    parent = await build("tiny")
    async with idle_buildah() as buildah:
        await buildah.run("rmi", f"localhost/arrakis:{parent.digest}")
    test = '["/bin/sh", "-c", "test -u /bin/su && test $GREETING = hello"]'
    child = await build("child", f"FROM tiny\nRUN {test}")
    assert "unpacking the image 'tiny' for buildah" in [step.text for step in build.steps]
    assert child.details.parent_digest == parent.digest


async def test_from_means_the_newest_image_of_that_name(build: Builder) -> None:
    """After a name moved to another image, a child begins from the new one."""
    await build("tiny")
    newer = await build("tiny", TINY + 'RUN ["/bin/sh", "-c", "echo new > /new"]')
    child = await build("child", 'FROM tiny\nRUN ["/bin/cat", "/new"]')
    assert child.details.parent_digest == newer.digest


async def test_build_arguments_reach_the_dockerfile(build: Builder) -> None:
    """An argument given replaces the Dockerfile's default."""
    await build("tiny")
    image = await build("child", "ARG BASE=nothing\nFROM $BASE\n", BASE="tiny")
    assert image.details.parent == "tiny"


async def test_an_image_says_how_much_memory_it_needs(build: Builder) -> None:
    """A label of the Dockerfile's is in the manifest, and in those of what descends from it, also
    when buildah lost the parent."""
    parent = await build("tiny", f"{TINY}\nLABEL arrakis.memory=1536")
    async with idle_buildah() as buildah:
        await buildah.run("rmi", f"localhost/arrakis:{parent.digest}")
    child = await build("child", 'FROM tiny\nRUN ["/bin/echo", "more"]')
    plain = await build("plain")
    found = [image.details.memory_mib for image in (parent, child, plain)]
    assert found == [1536, 1536, None]


@pytest.mark.parametrize("text", ["1G", "-1", "0", "\u0662"])
async def test_memory_that_is_no_number_is_refused(build: Builder, text: str) -> None:
    """A label that is not a number of MiB fails the build, and is shown."""
    with pytest.raises(ImageContentError, match=text):
        await build("tiny", f"{TINY}\nLABEL arrakis.memory={text}")


async def test_failing_step_is_named_and_nothing_stays(
    build: Builder, store: ImageStore, tmp_path: Path
) -> None:
    """A failing instruction is reported with its output, and no image or container stays."""
    failing = 'RUN ["/bin/sh", "-c", "echo about to fail; exit 3"]'
    with pytest.raises(ImageBuildError) as raised:
        await build("bad", f"{TINY}\n{failing}\nRUN never")
    assert raised.value.step == failing
    assert "about to fail" in raised.value.output
    assert raised.value.reason == "exit status 3"
    assert "buildah" in raised.value.command
    assert store.list() == ()
    await assert_nothing_left(tmp_path / "images", "about to fail")


async def test_unknown_parent_is_an_error(build: Builder) -> None:
    """A FROM that means nothing here fails at that step."""
    with pytest.raises(ImageBuildError) as raised:
        await build("child", "FROM no-such-image-anywhere\n")
    assert raised.value.step == "FROM no-such-image-anywhere"


@pytest.mark.parametrize(
    ("missing", "message"),
    [("/sbin/init", "no /sbin/init"), ("/usr/lib/arrakis/arrakis-agent", "no Arrakis agent")],
)
async def test_image_without_a_machine_in_it_is_refused(
    build: Builder, store: ImageStore, tmp_path: Path, missing: str, message: str
) -> None:
    """What could not run as a machine is refused with the advice to start from base."""
    (build.context / "tree" / missing[1:]).unlink()
    with pytest.raises(ImageContentError, match=f"{message}.*FROM base"):
        await build("bad")
    assert store.list() == ()
    await assert_nothing_left(tmp_path / "images", "image without")


async def test_init_outside_of_the_image_does_not_count(build: Builder) -> None:
    """A link to a program of the host is followed inside the image, where it leads nowhere."""
    init = build.context / "tree/sbin/init"
    init.unlink()
    init.symlink_to("/usr/bin/python3")
    with pytest.raises(ImageContentError, match="no /sbin/init"):
        await build("bad")


async def test_illegal_name_is_refused_first(store: ImageStore, tmp_path: Path) -> None:
    """The name is checked before anything else happens."""
    with pytest.raises(ImageNameError):
        await build_image(
            store,
            name="../evil",
            context=tmp_path,
            dockerfile=tmp_path / "none",
            build_args={},
            progress=print,
        )


async def test_missing_dockerfile_is_named(build: Builder, store: ImageStore) -> None:
    """A Dockerfile that is not there is an error of this package that names it."""
    with pytest.raises(ImageError, match="nowhere/Dockerfile: No such file"):
        await build_image(
            store,
            name="one",
            context=build.context,
            dockerfile=build.context / "nowhere/Dockerfile",
            build_args={},
            progress=print,
        )


@pytest.mark.parametrize(
    "moment", ["FROM scratch", "COPY tree/ /", "27183", "packing the file system", "publishing"]
)
async def test_cancelled_build_leaves_nothing(
    build: Builder, store: ImageStore, tmp_path: Path, moment: str
) -> None:
    """Wherever a build is cancelled, no image, container, mount, file or process stays."""
    text = (
        f'{TINY}\nRUN ["/bin/sh", "-c", "echo at work; sleep {2 if moment[0] == "p" else 27183}"]'
    )
    with trio.CancelScope() as scope:

        def progress(step: ImageBuildProgress) -> None:
            if moment in step.text:
                scope.cancel()

        await build("slow", text, progress=progress)
    assert scope.cancelled_caught
    assert store.list() == ()
    await assert_nothing_left(tmp_path / "images", "27183")
    assert (await build("tiny")).name == "tiny"


async def test_builds_wait_for_each_other(build: Builder, store: ImageStore) -> None:
    """Two builds at once both succeed; the second says that it waits."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(build, "one")
        nursery.start_soon(build, "two", TINY + "LABEL another=1\n")
    assert [image.name for image in store.list()] == ["one", "two"]
    assert "waiting for another build on this machine" in [step.text for step in build.steps]


async def test_full_disk_is_a_clear_error(build: Builder, tmp_path: Path) -> None:
    """When the image does not fit, the error says so and where, and nothing stays."""
    small = tmp_path / "small"
    small.mkdir()
    await run_command(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)])
    try:
        build.store = ImageStore(small / "images")
        with pytest.raises(ImageSpaceError, match=f"the disk is full(.|\n)*{small}"):
            await build("tiny")
        assert build.store.list() == ()
        await assert_nothing_left(small / "images", "27183")
    finally:
        with trio.move_on_after(60, shield=True):
            await run_command(["umount", str(small)])


async def test_child_of_the_base_image(base: Image, tmp_path: Path) -> None:
    """A Dockerfile FROM base finds the shared image, and in it every program it may count on."""
    assert base.details.kind == "base"
    shared = base.path.parent.parent
    store = ImageStore(tmp_path / "images", shared)
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM base\nRUN {' && '.join(BASE_PROGRAMS)}\n")
    image = await build_image(
        store,
        name="child",
        context=tmp_path,
        dockerfile=dockerfile,
        build_args={},
        progress=print,
    )
    assert (image.details.parent, image.details.parent_digest) == ("base", base.digest)
    assert image.details.distribution == base.details.distribution
    assert store.resolve("child").path.is_relative_to(tmp_path)
    assert not ImageStore(shared).contains("child")
