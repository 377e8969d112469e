import pytest

from arrakis_rootfs.dockerfile import find_needed_images


@pytest.mark.parametrize(
    ("text", "parent", "needed"),
    [
        ("FROM base", "base", {"base"}),
        ("# FROM a\n\nfrom base as x\nRUN FROM b", "base", {"base"}),
        ("FROM --platform=linux/amd64 base", "base", {"base"}),
        ("ARG BASE=base\nFROM ${BASE}", "given", {"given"}),
        ('ARG OTHER="base"\nFROM $OTHER', "base", {"base"}),
        ("FROM ${NOTHING:-base}", "base", {"base"}),
        ("FROM one AS build\nFROM two\nCOPY --from=build /a /b", "two", {"one", "two"}),
        ("FROM one AS build\nFROM build", "one", {"one"}),
        ("FROM one\nCOPY --chown=1:1 --from=tools a b", "one", {"one", "tools"}),
        ("FROM \\\n  base", "base", {"base"}),
        ("RUN true", None, set()),
        ("", None, set()),
    ],
)
def test_needed_images_are_found(text: str, parent: str | None, needed: set[str]) -> None:
    """Every image that a Dockerfile refers to is found, through arguments and stages."""
    found = find_needed_images(text, {"BASE": "given"})
    assert (found.parent, found.all) == (parent, needed)
