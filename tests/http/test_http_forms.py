"""What is made of a guest's words and numbers for readers of JSON."""

from __future__ import annotations

import json

import pytest

from arrakis_rpc.daemon_api import Failure
from arrakis_rpc.errors import GuestError
from arrakis_rpc.guest_api import FileListResult
from arrakisd.http.failures import failure_body
from arrakisd.http.json_form import public

STAT = {"name": "a", "kind": "file", "mode": 0, "mtime": 0.0, "uid": 0, "gid": 0}


def test_names_that_are_no_utf_8() -> None:
    """They are readable for every reader, as a command's output is."""
    page = {"entries": [{**STAT, "name": "b\udcff\udc80ö", "size": 1}], "more": False}
    text = json.dumps(public(page, FileListResult), ensure_ascii=False)
    assert json.loads(text.encode())["entries"][0]["name"] == "b\ufffd\ufffdö"


def test_errors_that_are_no_utf_8() -> None:
    """So are an error's words."""
    body = failure_body(GuestError("no \udcff", hint="but \udcfe"))
    assert body == {"error": {"message": "no \ufffd", "hint": "but \ufffd"}}


@pytest.mark.parametrize("size", [2**53 + 1, -(2**60), 2**64 - 1])
def test_numbers_that_cannot_be_true(size: int) -> None:
    """They are the guest's failure, and not passed on to readers that would round them."""
    page = {"entries": [{**STAT, "size": size}], "more": False}
    with pytest.raises(GuestError, match="number"):
        public(page, FileListResult)


def test_what_is_fine_stays() -> None:
    """Everything else is as it was."""
    wire = {"reason": "grün", "console": ["a", "b"]}
    assert public(wire, Failure) == wire
