"""The tables of operations and errors: complete, consistent, and usable as they stand."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rpc_strategies import ERRORS, maps, parts, same, texts
from rpc_types import KINDS, OPERATIONS, PARAMS, fields_of, is_optional, name_of, without_none

import arrakis_rpc
from arrakis_rpc import connection, errors, framing, resync
from arrakis_rpc.connection import MAX_CHANNEL_NAME, MAX_CHANNELS
from arrakis_rpc.daemon_api import InGuest
from arrakis_rpc.errors import ArrakisError, error_from_wire
from arrakis_rpc.framing import decode_body, encode_frame
from arrakis_rpc.guest_api import Pty
from arrakis_rpc.network_api import VmNetwork
from arrakis_rpc.operations import DAEMON, GUEST, Operation

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.method)
every_error = pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)

STATES = {"CREATED", "RUNNING", "PAUSED", "SUSPENDED", "STOPPED"}


def types_within(kind: Any) -> list[Any]:
    """All types that a type is made of."""
    if is_optional(kind):
        return types_within(without_none(kind))
    if get_origin(kind) in (list, dict):
        return [get_origin(kind), *(t for arg in get_args(kind) for t in types_within(arg))]
    if attrs.has(kind):
        return [t for hint in fields_of(kind).values() for t in types_within(hint)]
    return [get_origin(kind) or kind]


class TestErrors:
    def test_every_class_has_a_code_of_its_own(self) -> None:
        """No error turns into another on the wire."""
        codes = [cls.code for cls in ERRORS]

        assert len(set(codes)) == len(codes) >= 18
        assert all("code" in vars(cls) for cls in ERRORS)
        assert all(-32768 <= code <= -32000 for code in codes)

    def test_codes_are_those_of_json_rpc_and_of_this_version(self) -> None:
        """Clients in other languages know an error by its code alone."""
        assert {cls.__name__: cls.code for cls in ERRORS} == {
            "ArrakisError": -32000,
            "ProtocolError": -32700,
            "UnknownMethodError": -32601,
            "InvalidParamsError": -32602,
            "InternalError": -32603,
            "NotFoundError": -32001,
            "AlreadyExistsError": -32002,
            "InvalidStateError": -32003,
            "ExhaustedError": -32004,
            "UnsupportedError": -32005,
            "DeadlineError": -32006,
            "CancelledError": -32007,
            "IntegrityError": -32008,
            "GuestError": -32009,
            "FileOperationError": -32010,
            "VmmError": -32011,
            "ImageBuildError": -32012,
            "ConnectionLostError": -32013,
            "AccessDeniedError": -32014,
        }

    def test_the_tree_in_the_documentation_is_the_tree(self) -> None:
        """Each class stands in the module's docstring, and each name there is a class."""
        lines = (errors.__doc__ or "").split("::")[1].splitlines()
        documented = [line.strip("├└─ ").split()[0] for line in lines if line.strip()]

        assert sorted(documented) == sorted(cls.__name__ for cls in ERRORS)

    @every_error
    @settings(max_examples=10)
    @given(st.data())
    def test_an_error_survives_the_wire(self, cls: type[ArrakisError], data: st.DataObject) -> None:
        """Class, message, machine, states, hint and detail are the same at the other end."""
        names = data.draw(st.sets(st.sampled_from(errors.DATA_FIELDS)).map(sorted))
        error = cls(data.draw(texts), **{name: data.draw(texts) for name in names})
        error.detail = data.draw(maps)

        received = error_from_wire(decode_body(encode_frame(error.to_wire())[4:]))

        assert same(parts(received), parts(error))

    @every_error
    def test_detail_is_what_no_other_field_is(self, cls: type[ArrakisError]) -> None:
        """Further facts are given by name and found again in ``detail``."""
        error = cls("m", vm="v", errno=2, path="/p")

        assert parts(error_from_wire(error.to_wire())) == (
            cls, "m", "m", "v", None, None, None, {"errno": 2, "path": "/p"}
        )  # fmt: skip

    def test_an_error_without_data_is_short(self) -> None:
        """What was not said is not sent."""
        assert errors.NotFoundError("m").to_wire() == {"code": -32001, "message": "m"}

    def test_a_class_from_elsewhere_arrives_as_the_nearest_known_one(self) -> None:
        """Components refine errors for themselves; their peers see what they refined."""

        class SocketClosedError(errors.VmmError):
            pass

        assert type(error_from_wire(SocketClosedError("m").to_wire())) is errors.VmmError


class TestOperations:
    @pytest.mark.parametrize("table", [DAEMON, GUEST], ids=["daemon", "guest"])
    def test_an_operation_is_found_by_its_name(self, table: dict[str, Operation]) -> None:
        """Every entry stands under the method it names, once."""
        assert all(method == operation.method for method, operation in table.items())
        assert all(method.count(".") == 1 for method in table)

    @every_operation
    def test_parameters_and_results_are_classes_that_can_be_structured(
        self, operation: Operation
    ) -> None:
        """What a server dispatches by and a client structures by is there, with its docs."""
        for kind in (operation.params, operation.result):
            assert kind in KINDS
            assert attrs.has(kind)
            assert (get_origin(kind) or kind).__doc__
        assert operation.summary

    @pytest.mark.parametrize("kind", KINDS, ids=name_of)
    def test_only_types_that_are_structured_strictly_are_used(self, kind: Any) -> None:
        """A type that the converter leaves to cattrs would be converted."""
        strict = {bool, int, float, str, bytes, list, dict, Literal, Any}

        assert set(types_within(kind)) <= strict

    def test_what_is_left_out_means_what_it_always_meant(self) -> None:
        """Callers rely on defaults that are not None by leaving fields out."""
        defaults = {}
        for kind in [*PARAMS, Pty]:
            origin = get_origin(kind) or kind
            for attribute in attrs.fields(origin):
                default = attribute.default
                if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
                    default = default.factory()
                if default is not None and default is not attrs.NOTHING:
                    defaults[f"{origin.__name__}.{attribute.name}"] = default

        assert defaults == {
            "Page.limit": 1000,
            "VmFork.count": 1,
            "VmRename.replace": False,
            "SnapshotCreate.label": "",
            "SnapshotDelete.recursive": False,
            "DesktopClick.button": "left",
            "DesktopClick.count": 1,
            "DesktopScroll.dx": 0,
            "DesktopScroll.dy": 0,
            "ImageBuild.dockerfile": "Dockerfile",
            "ImageBuild.build_args": {},
            "ImagePrune.dry_run": False,
            "ExecSpec.env": {},
            "ExecSpec.stdin": False,
            "ExecSpec.merge_output": False,
            "ExecSpec.background": False,
            "FileRead.offset": 0,
            "FileWrite.append": False,
            "FileWrite.parents": True,
            "FileList.limit": 1000,
            "FileMkdir.mode": 0o755,
            "FileMkdir.parents": False,
            "FileRemove.recursive": False,
            "VmStart.network": VmNetwork(),
            "Identity.ssh_authorized_keys": b"",
            "Identity.asleep": 0,
            "Pty.rows": 24,
            "Pty.cols": 80,
            "Pty.term": "xterm-256color",
        }

    @every_operation
    def test_states_errors_and_channels_are_real(self, operation: Operation) -> None:
        """What the table says of an operation exists."""
        channels = [*operation.sends, *operation.takes]

        assert set(operation.states) <= STATES
        assert all(issubclass(error, ArrakisError) for error in operation.raises)
        assert len(set(channels)) == len(channels) <= MAX_CHANNELS
        assert all(0 < len(channel) <= MAX_CHANNEL_NAME for channel in channels)
        assert all("." in method for method in operation.notes)

    def test_what_the_guest_does_the_daemon_offers_for_a_vm(self) -> None:
        """Commands and files pass through with the same result, streams and notes."""
        for method, inner in GUEST.items():
            if method.startswith(("exec.", "file.")):
                outer = DAEMON[method]
                assert outer.params == InGuest[inner.params]  # type: ignore[name-defined]
                assert attrs.evolve(outer, params=inner.params, summary=inner.summary) == inner
            else:
                assert method not in DAEMON


def test_the_limits_are_those_of_this_version_of_the_protocol() -> None:
    """Both ends count with them, so a change of one is a new version."""
    limits = {
        name: value
        for module in (connection, framing, resync)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int | bytes) and not name.startswith("_")
    }

    assert arrakis_rpc.PROTOCOL_VERSION == 1
    assert limits == {
        "MAX_FRAME": 2**20,
        "MAX_ITEMS": 2**17,
        "MAX_NESTING": 16,
        "WINDOW": 2**20,
        "MAX_CHUNK": 2**17,
        "MAX_CALLS": 256,
        "MAX_CHANNELS": 8,
        "MAX_CHANNEL_NAME": 64,
        "TOKEN_SIZE": 32,
        "NONCE_SIZE": 16,
        "FIRST_TOKEN": b"arrakis-agent-first-session\0\0\0\0\0",
    }
