"""Names that come from outside: what is a path, or looks like another name, is refused."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arrakis_rpc.converter import structure
from arrakis_rpc.daemon_api import (
    ImageBuild,
    ImageName,
    InGuest,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotId,
    TemplateBuild,
    TemplateId,
    VmFork,
    VmName,
    VmStart,
)
from arrakis_rpc.errors import InvalidParamsError
from arrakis_rpc.guest_api import FilePath

PATHS = [
    "../../etc/passwd",
    "..",
    ".",
    "...",
    "/",
    "/etc/passwd",
    "a/b",
    "a/",
    "./a",
    "a/../b",
    "a..b",
    "a\\b",
    "..\\a",
    ".hidden",
    "~",
    "~root",
    "",
    " ",
    "a b",
    " a",
    "a ",
    "a\n",
    "\na",
    "a\r\n",
    "a\nb",
    "a\t",
    "a\0",
    "a\0.txt",
    "a\x7f",
    "a\u2028",
    "a\u0085",
    "-a",
    "--force",
    "_a",
    "a*",
    "a?",
    "$a",
    "`a`",
    "a;b",
    "a|b",
    "a&b",
    "a'b",
    'a"b',
    "a:b",
    "a@b",
    "a%2fb",
    "\u0430bc",  # Cyrillic
    "\uff41bc",  # full width
    "abc\u0661",  # an Arabic digit
    "\u00b2",  # superscript two
    "\u212a",  # the Kelvin sign, whose lower case is a k
    "\u017f",  # long s
    "a\u0301",
    "\u00e9",
    "a\u200b",
    "a\u202eb",
    "a\u2024\u2024b",  # one dot leaders
    "a\u2215b",  # division slash
    "a\udcff",
    "x" * 64,
    "x" * 100_000,
]

VM_NAMES = ["a", "A", "0", "agent-sandbox", "a_b", "a.b", "a.", "a-", "Z9", "a" * 63]
STORE_IDS = ["a", "0", "before", "a-b", "a-", "a" * 63]
DIGESTS = ["0a" * 32, "0123456789abcdef" * 4]


def vm_name(value: Any) -> list[tuple[dict[str, Any], Any]]:
    return [
        ({"name": value}, VmName),
        ({"name": value}, VmStart),
        ({"name": value}, VmFork),
        ({"name": "a", "names": ["b", value]}, VmFork),
        ({"vm": value}, SnapshotCreate),
        ({"vm": value, "args": {"path": "p"}}, InGuest[FilePath]),
    ]


def store_id(value: Any) -> list[tuple[dict[str, Any], Any]]:
    return [
        ({"id": value}, SnapshotId),
        ({"id": value}, SnapshotDelete),
        ({"id": value}, TemplateId),
        ({"vm": "a", "id": value}, SnapshotCreate),
        ({"name": "a", "snapshot": value}, VmStart),
        ({"name": value}, ImageBuild),
    ]


def image_name(value: Any) -> list[tuple[dict[str, Any], Any]]:
    return [
        ({"name": value}, ImageName),
        ({"name": "a", "image": value}, VmStart),
        ({"image": value}, TemplateBuild),
    ]


def refused(cases: list[tuple[dict[str, Any], Any]]) -> bool:
    """Whether a name is refused everywhere; it is an error if only in some places."""
    verdicts = set()
    for wire, kind in cases:
        try:
            structure(wire, kind)
        except InvalidParamsError:
            verdicts.add(True)
        else:
            verdicts.add(False)
    assert len(verdicts) == 1
    return verdicts.pop()


class TestHostileNames:
    @pytest.mark.parametrize("name", PATHS, ids=lambda name: ascii(name)[:30])
    def test_no_name_is_a_path_or_a_look_alike(self, name: str) -> None:
        """Not for VMs, not for snapshots, not for images, wherever they can be given."""
        assert refused(vm_name(name))
        assert refused(store_id(name))
        assert refused(image_name(name))

    @given(st.text(max_size=70) | st.text(string.printable, max_size=5))
    @example("a" * 63)
    def test_names_of_vms_are_made_of_a_few_characters(self, name: str) -> None:
        """Letters, digits and three signs of ASCII, at most 63, a letter or digit first."""
        allowed = (
            0 < len(name) <= 63
            and set(name) <= {*string.ascii_letters, *string.digits, *"-_."}
            and name[0] not in "-_."
            and ".." not in name
        )
        assert refused(vm_name(name)) is not allowed

    @given(st.text(max_size=70) | st.text(string.printable, max_size=5))
    @example("a" * 63)
    def test_ids_are_made_of_fewer(self, name: str) -> None:
        """Lower-case letters, digits and '-'."""
        allowed = (
            0 < len(name) <= 63
            and set(name) <= {*string.ascii_lowercase, *string.digits, "-"}
            and name[0] != "-"
        )
        assert refused(store_id(name)) is not allowed
        assert refused(image_name(name)) is not allowed

    @pytest.mark.parametrize("name", VM_NAMES)
    def test_ordinary_names_of_vms_are_accepted(self, name: str) -> None:
        """Everything that the documentation allows."""
        assert not refused(vm_name(name))

    @pytest.mark.parametrize("name", STORE_IDS)
    def test_ordinary_ids_are_accepted(self, name: str) -> None:
        """For snapshots and images alike."""
        assert not refused(store_id(name))
        assert not refused(image_name(name))

    @pytest.mark.parametrize("digest", DIGESTS)
    def test_an_image_may_be_called_by_its_digest(self, digest: str) -> None:
        """With or without its algorithm; a part of one, or more, is none."""
        assert not refused(image_name(digest))
        assert refused(store_id(digest))
        for wrong in (digest + "0", digest.upper(), digest + "\n", "md5:" + digest):
            assert refused(image_name(wrong))

    @pytest.mark.parametrize(
        "path", ["/etc/passwd", "../Dockerfile", "a/../../b", "..", "a/..", "", "a\0b"]
    )
    def test_a_dockerfile_lies_in_its_context(self, path: str) -> None:
        """The build does not read files of the host."""
        assert refused([({"name": "a", "dockerfile": path}, ImageBuild)])

    @pytest.mark.parametrize("path", ["Dockerfile", "docker/Dockerfile.dev", "./a", "..a", "a.."])
    def test_a_dockerfile_may_lie_deeper(self, path: str) -> None:
        """In any folder of the context."""
        assert not refused([({"name": "a", "dockerfile": path}, ImageBuild)])
