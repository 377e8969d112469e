"""Envelopes: each kind survives the wire, and nothing else passes for one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rpc_strategies import ERRORS, maps, parts, same, scalars, texts, values

from arrakis_rpc.envelope import Failure, Notification, Request, Result, parse_envelope
from arrakis_rpc.errors import ArrakisError, ProtocolError, error_from_wire
from arrakis_rpc.framing import decode_body, encode_frame

ids = st.integers(1, 2**53 - 1)


@st.composite
def errors(draw: st.DrawFn) -> ArrakisError:
    fields = draw(
        st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("vm", "state", "required", "hint"), texts)
        )
    )
    error = draw(st.sampled_from(ERRORS))(draw(texts), **fields)
    error.detail = draw(maps)
    return error


envelopes = (
    st.builds(Request, ids, texts, maps)
    | st.builds(Notification, texts, maps)
    | st.builds(Result, ids, values)
    | st.builds(Failure, ids, errors())
)


def over_the_wire(message: object) -> Any:
    return decode_body(encode_frame(message)[4:])


class TestRoundTrip:
    @given(envelopes)
    def test_every_envelope_comes_out_as_it_went_in(
        self, envelope: Request | Notification | Result | Failure
    ) -> None:
        """Kind, id, and all that it carries survive the wire."""
        received = parse_envelope(over_the_wire(envelope.to_wire()))

        if isinstance(envelope, Failure):
            assert isinstance(received, Failure)
            assert received.id == envelope.id
            assert same(parts(received.error), parts(envelope.error))
        else:
            assert same(received, envelope)


def _is_envelope(message: Any) -> bool:
    """Say what the specification says, and nothing about how it is found out."""
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        return False
    id_ok = type(message.get("id")) is int and 0 < message["id"] < 2**53
    method_ok = type(message.get("method")) is str and type(message.get("params")) is dict
    return {
        frozenset({"jsonrpc", "id", "method", "params"}): id_ok and method_ok,
        frozenset({"jsonrpc", "method", "params"}): method_ok,
        frozenset({"jsonrpc", "id", "result"}): id_ok,
        frozenset({"jsonrpc", "id", "error"}): id_ok and type(message.get("error")) is dict,
    }.get(frozenset(message), False)


near_envelopes = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0") | st.sampled_from(["1.0", "2", 2.0, b"2.0", None, ["2.0"]])},
    optional={
        "id": ids | scalars | st.sampled_from([0, -1, 1.0, True, 2**53, "1", [1]]),
        "method": texts | values,
        "params": maps | values,
        "result": values,
        "error": maps | values,
    },
) | st.builds(
    lambda envelope, changes: envelope.to_wire() | changes,
    envelopes,
    st.dictionaries(st.sampled_from(["jsonrpc", "id", "method", "params", "more"]), scalars),
)


class TestHostile:
    @given(near_envelopes | values)
    def test_a_message_is_recognised_exactly_when_it_is_an_envelope(self, message: Any) -> None:
        """Whatever a frame can hold is an envelope, or a `ProtocolError` and nothing else."""
        message = over_the_wire(message)
        if _is_envelope(message):
            parse_envelope(message)
        else:
            with pytest.raises(ProtocolError):
                parse_envelope(message)

    @pytest.mark.parametrize("number", [True, 0, -1, 2**53, 1.0, "1", None, b"1", [1], {}])
    def test_an_id_is_a_positive_integer_and_nothing_that_equals_one(self, number: Any) -> None:
        """Ids do not come as booleans, floats, text, or beyond what a float holds exactly."""
        bodies: list[dict[str, Any]] = [{"method": "m", "params": {}}, {"result": 1}, {"error": {}}]
        for rest in bodies:
            with pytest.raises(ProtocolError, match="id"):
                parse_envelope({"jsonrpc": "2.0", "id": number, **rest})

    @pytest.mark.parametrize("value", [None, 1, True, 1.5, "text", b"text", [], ["m"], {}, {1: 1}])
    def test_each_member_has_the_type_that_it_must_have(self, value: Any) -> None:
        """A method is text, parameters are a map with text keys, an error is a map."""
        message = {"jsonrpc": "2.0", "id": 1, "method": "m", "params": {}}
        failure = {"jsonrpc": "2.0", "id": 1, "error": {}}
        notification = {"jsonrpc": "2.0", "method": "m", "params": {}}
        wrong = []
        if type(value) is not str:
            wrong += [message | {"method": value}, notification | {"method": value}]
        if value != {}:
            wrong += [message | {"params": value}, notification | {"params": value}]
        if type(value) is not dict:
            wrong += [failure | {"error": value}]
        for envelope in wrong:
            with pytest.raises(ProtocolError, match="is not"):
                parse_envelope(envelope)

    def test_the_complaint_about_members_is_short(self) -> None:
        """A peer cannot make an error message as long as its frame."""
        message = {"jsonrpc": "2.0"} | {"m" * number: 1 for number in range(1, 500)}

        with pytest.raises(ProtocolError) as caught:
            parse_envelope(message)

        assert len(caught.value.message) < 300


hostile_errors = st.fixed_dictionaries(
    {},
    optional={
        "code": st.sampled_from([cls.code for cls in ERRORS]) | scalars,
        "message": texts | values,
        "data": values
        | st.fixed_dictionaries(
            {},
            optional={
                **dict.fromkeys(("vm", "state", "required", "hint"), texts | values),
                "detail": maps | values,
                "message": values,
                "self": values,
            },
        ),
    },
)


class TestHostileErrors:
    @given(hostile_errors | maps)
    def test_an_error_member_never_raises_and_gives_an_error_of_the_right_types(
        self, wire: dict[str, Any]
    ) -> None:
        """Code, message and data of any kind make an error whose fields can be relied on."""
        error = error_from_wire(over_the_wire(wire))

        assert type(error) in ERRORS
        assert type(error.message) is str
        assert error.args == (error.message,)
        for name in ("vm", "state", "required", "hint"):
            assert getattr(error, name) is None or type(getattr(error, name)) is str
        assert type(error.detail) is dict
        assert all(type(key) is str for key in error.detail)

    @given(hostile_errors)
    def test_an_error_that_a_guest_made_up_can_be_sent_on(self, wire: dict[str, Any]) -> None:
        """The daemon passes errors from the guest to its client, hostile ones as well."""
        error = error_from_wire(over_the_wire(wire))

        again = parse_envelope(over_the_wire(Failure(1, error).to_wire()))

        assert isinstance(again, Failure)
        assert same(parts(again.error), parts(error))

    @pytest.mark.parametrize("code", [1, 0, True, False, -1, 2**63, 1.5, "-32001", None, [-32001]])
    def test_an_unknown_code_gives_the_root_class(self, code: Any) -> None:
        """What a code does not stand for is an error all the same."""
        assert type(error_from_wire({"code": code, "message": "m"})) is ArrakisError

    def test_detail_as_large_as_a_frame_is_carried(self) -> None:
        """Size alone breaks nothing."""
        wire = {
            "code": -32001,
            "message": "m" * 100_000,
            "data": {"vm": ["v" * 100_000], "detail": {str(n): None for n in range(50_000)}},
        }
        error = error_from_wire(over_the_wire(wire))

        assert len(error.message) == 100_000
        assert len(error.detail) == 50_000
