"""Structuring is strict: what fits comes through whole, what does not is refused by name."""

from __future__ import annotations

from typing import Any, Literal, get_origin

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rpc_strategies import peak_memory, values
from rpc_types import KINDS, PARAMS, fits, instances, maps_in, name_of, sample, spoiled

from arrakis_rpc.converter import structure, unstructure
from arrakis_rpc.daemon_api import (
    Check,
    InGuest,
    SnapshotCreate,
    SystemHello,
    TemplateBuild,
    VmFork,
    VmName,
    VmStart,
)
from arrakis_rpc.errors import InvalidParamsError
from arrakis_rpc.framing import decode_body, encode_frame
from arrakis_rpc.guest_api import (
    Clock,
    ExecSpec,
    FileList,
    FileMkdir,
    FilePath,
    FileRead,
    FileRemove,
    FileWrite,
    Hello,
    Identity,
    Nothing,
    Pty,
)
from arrakis_rpc.network_api import Egress

every_kind = pytest.mark.parametrize("kind", KINDS, ids=name_of)


def over_the_wire(message: object) -> Any:
    return decode_body(encode_frame(message)[4:])


def problem_with(wire: object, kind: Any) -> str:
    """What the refusal of a wire value says."""
    with pytest.raises(InvalidParamsError) as caught:
        structure(wire, kind)
    return str(caught.value)


def refusal(wire: object, kind: Any) -> str:
    """The same, and nothing if the value is accepted."""
    try:
        structure(wire, kind)
    except InvalidParamsError as error:
        return error.message
    return ""


class TestRoundTrip:
    @every_kind
    @settings(max_examples=6)
    @given(st.data())
    def test_what_is_valid_comes_through_whole(self, kind: Any, data: st.DataObject) -> None:
        """Unstructured, sent, received and structured again it is equal, field by field."""
        thing = data.draw(instances(kind))
        wire = over_the_wire(unstructure(thing))

        assert structure(wire, kind) == thing
        assert fits(wire, kind)

    @every_kind
    def test_fields_with_defaults_may_be_left_out(self, kind: Any) -> None:
        """A caller that does not know a field does not send it."""
        wire = unstructure(sample(kind))
        if kind == ExecSpec:
            wire |= {"argv": None, "shell": "true"}
        for attribute in attrs.fields(type(sample(kind))):
            if attribute.default is not attrs.NOTHING:
                default = attribute.default
                if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
                    default = default.factory()
                if attribute.name != "shell" and kind != Egress:
                    rest = {name: wire[name] for name in wire if name != attribute.name}
                    assert getattr(structure(rest, kind), attribute.name) == default

    def test_a_whole_number_is_a_duration_too(self) -> None:
        """Clients that write 5 for 5.0 are understood, and get a float."""
        spec = structure({"shell": "true", "timeout": 5}, ExecSpec)

        assert type(spec.timeout) is float


class TestStrictness:
    @every_kind
    def test_a_value_of_a_wrong_type_is_refused_by_the_path_of_its_field(self, kind: Any) -> None:
        """In every field at every depth: no other type passes, and none is converted."""
        for path, worse in spoiled(unstructure(sample(kind)), kind):
            problem = problem_with(worse, kind)
            assert problem.startswith(f"{path}: expected " if path else "expected "), worse

    @every_kind
    def test_a_field_that_the_type_does_not_have_is_refused_by_name(self, kind: Any) -> None:
        """At every depth, with its path and its own name."""
        wire = unstructure(sample(kind))
        for path, _, members in maps_in(wire, kind):
            for name in ("moreover", "Name", "name ", "__init__", "\udcff", ""):
                members[name] = None
                problem = f"extra fields found ({name})"
                assert problem_with(wire, kind) == (f"{path}: {problem}" if path else problem)
                del members[name]

    @every_kind
    def test_a_field_that_is_missing_is_named(self, kind: Any) -> None:
        """At every depth, if the field has no default."""
        wire = unstructure(sample(kind))
        for path, inner, members in maps_in(wire, kind):
            for attribute in attrs.fields(get_origin(inner) or inner):
                if attribute.default is attrs.NOTHING:
                    value = members.pop(attribute.name)
                    where = f"{path}.{attribute.name}" if path else attribute.name
                    assert problem_with(wire, kind) == f"{where}: required field missing"
                    members[attribute.name] = value

    @given(st.sampled_from(KINDS), values)
    def test_random_values_are_refused_or_fit(self, kind: Any, wire: Any) -> None:
        """Whatever a frame can hold, it is an object of the type or `InvalidParamsError`."""
        try:
            thing = structure(wire, kind)
        except InvalidParamsError:
            return
        assert fits(unstructure(thing), kind)

    @pytest.mark.parametrize(
        ("wire", "kind", "problem"),
        [
            ({"name": 1}, VmName, "name: expected str, got int"),
            ({"name": "a", "vcpus": "2"}, VmStart, "vcpus: expected int, got str"),
            ({"name": "a", "vcpus": True}, VmStart, "vcpus: expected int, got bool"),
            ({"name": "a", "vcpus": 2.0}, VmStart, "vcpus: expected int, got float"),
            ({"argv": "ls"}, ExecSpec, "argv: expected list, got str"),
            ({"argv": {"ls": 1}}, ExecSpec, "argv: expected list, got dict"),
            ({"argv": ["ls", 1]}, ExecSpec, "argv[1]: expected str, got int"),
            ({"shell": "a", "env": [["A", "b"]]}, ExecSpec, "env: expected dict, got list"),
            ({"shell": "a", "env": {"A": 1}}, ExecSpec, "env['A']: expected str, got int"),
            ({"shell": "a", "env": {1: "b"}}, ExecSpec, "env: expected str as a key, got int"),
            ({"shell": "a", "stdin": 1}, ExecSpec, "stdin: expected bool, got int"),
            ({"shell": "a", "timeout": True}, ExecSpec, "timeout: expected float, got bool"),
            ({"shell": "a", "timeout": "5"}, ExecSpec, "timeout: expected float, got str"),
            ({"shell": "a", "pty": []}, ExecSpec, "pty: expected dict, got list"),
            ({"shell": "a", "pty": {"rows": "1"}}, ExecSpec, "pty.rows: expected int, got str"),
            ({"versions": b"\1", "token": bytes(32)}, Hello, "versions: expected list, got bytes"),
            ({"versions": [1], "token": "a" * 32}, Hello, "token: expected bytes, got str"),
            (
                {"vm": "a", "args": {"argv": [b"ls"]}},
                InGuest[ExecSpec],
                "args.argv[0]: expected str, got bytes",
            ),
            ([("name", "a")], VmName, "expected dict, got list"),
            ("name", VmName, "expected dict, got str"),
            (None, Nothing, "expected dict, got NoneType"),
            ([], Nothing, "expected dict, got list"),
            ({1: 2}, Nothing, "expected str as a key, got int"),
            (
                {"name": "a", "ok": True, "detail": "", 5: 1},
                Check,
                "expected str as a key, got int",
            ),
        ],
        ids=lambda value: repr(value) if isinstance(value, str) else None,
    )
    def test_what_cattrs_would_convert_is_refused(self, wire: Any, kind: Any, problem: str) -> None:
        """Numbers in text, text as a list, pairs as a map, and their like."""
        assert problem_with(wire, kind) == problem

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400, 2**65])
    @pytest.mark.parametrize(
        ("kind", "field"), [(ExecSpec, "timeout"), (FileWrite, "mtime")], ids=["timeout", "mtime"]
    )
    def test_a_number_that_is_no_quantity_is_refused(
        self, kind: Any, field: str, value: float
    ) -> None:
        """Neither a deadline nor a time is infinite, or not a number."""
        wire = {"shell": "a"} if kind is ExecSpec else {"path": "a"}

        assert problem_with(wire | {field: value}, kind).startswith(f"{field}: ")

    @pytest.mark.parametrize("value", ["running", "", None, 1, ["RUNNING"], {}, b"RUNNING"])
    def test_one_of_a_few_words_is_that_word_exactly(self, value: Any) -> None:
        """And the others that would do are named."""

        status: Any = Literal["RUNNING", "PAUSED"]

        assert structure("PAUSED", status) == "PAUSED"
        assert problem_with(value, status) == "expected one of 'RUNNING', 'PAUSED'"


# By class and field: values at the borders that are accepted, and those just beyond.
_BORDERS: list[tuple[Any, str, list[Any], list[Any]]] = [
    (SystemHello, "client", ["", "c" * 200], ["c" * 201]),
    (VmStart, "vcpus", [1, 64, None], [0, 65]),
    (VmStart, "memory_mib", [128, 2**40, None], [127, -(2**40)]),
    (VmStart, "disk_mib", [64, 2**40, None], [63]),
    (TemplateBuild, "vcpus", [1, 64, None], [0, 65]),
    (TemplateBuild, "memory_mib", [128, None], [127]),
    (TemplateBuild, "disk_mib", [64, None], [63]),
    (VmFork, "count", [1, 64], [0, 65]),
    (VmFork, "names", [[], ["a", "b"], None], [["a", "../b"]]),
    (SnapshotCreate, "label", ["", "any \n", "l" * 200], ["l" * 201]),
    (Hello, "token", [bytes(32)], [bytes(31), bytes(33), b""]),
    (Identity, "hostname", ["h", "h" * 63], ["", "h" * 64]),
    (Identity, "machine_id", ["0" * 32], ["0" * 31, "0" * 33]),
    (Identity, "entropy", [bytes(32), bytes(512)], [bytes(31), bytes(513)]),
    (Clock, "realtime", [0, 2**62], [-1]),
    (Pty, "rows", [1, 10_000], [0, 10_001]),
    (Pty, "cols", [1, 10_000], [0, 10_001]),
    (Pty, "term", ["", "t" * 64], ["t" * 65]),
    (ExecSpec, "argv", [["a"], ["", "\n"]], [[], ["a\0b"]]),
    (ExecSpec, "env", [{}, {"A": ""}], [{"A\0": "b"}, {"A": "b\0"}]),
    (ExecSpec, "cwd", ["/", "c" * 4096, None], ["", "c" * 4097, "a\0b"]),
    (ExecSpec, "user", ["u", None], [""]),
    (ExecSpec, "timeout", [0, 0.0, 1e9, None], [-0.1, -1]),
    (FileRead, "offset", [0, 2**60], [-1]),
    (FileRead, "length", [0, 2**60, None], [-1]),
    (FileWrite, "mode", [0, 0o7777, None], [-1, 0o10000]),
    (FileMkdir, "mode", [0, 0o7777], [-1, 0o10000]),
    (FileList, "limit", [1, 1000], [0, 1001]),
    *(
        (kind, "path", ["/", ".", "../a", "p" * 4096, "\udcff"], ["", "p" * 4097, "a\0b", "\0"])
        for kind in (FilePath, FileList, FileRead, FileWrite, FileMkdir, FileRemove)
    ),
]


class TestRanges:
    @pytest.mark.parametrize(
        ("kind", "field", "accepted", "refused"),
        _BORDERS,
        ids=[f"{kind.__name__}-{field}" for kind, field, *_ in _BORDERS],
    )
    def test_a_range_is_what_it_is_to_the_last_value(
        self, kind: Any, field: str, accepted: list[Any], refused: list[Any]
    ) -> None:
        """The borders are inside, and what is outside is refused with a word on which field."""
        wire = unstructure(sample(kind))
        for value in accepted:
            assert getattr(structure(wire | {field: value}, kind), field) == value
        for value in refused:
            problem = problem_with(wire | {field: value}, kind)
            assert field in problem or "NUL character" in problem

    @pytest.mark.parametrize("spec", [{}, {"argv": ["a"], "shell": "a"}])
    def test_a_command_is_given_in_one_way(self, spec: dict[str, Any]) -> None:
        """Not as words and as a script at once, and not not at all."""
        assert problem_with(spec, ExecSpec) == "give either argv or shell"

    @pytest.mark.parametrize("field", ["shell", "cwd"])
    def test_text_for_a_command_has_no_nul(self, field: str) -> None:
        """The kernel would cut it short."""
        assert problem_with({"shell": "true", field: "a\0b"}, ExecSpec)

    def test_the_field_of_a_guest_call_is_found_below_its_arguments(self) -> None:
        """The daemon checks what it passes on."""
        problem = problem_with({"vm": "a", "args": {"path": ""}}, InGuest[FileWrite])

        assert problem.startswith("args: path is ")


@attrs.frozen
class Level:
    """A class of somebody else, with a validator whose error has more than a message."""

    level: str = attrs.field(validator=attrs.validators.in_(("info", "debug")))


class TestRefusals:
    def test_each_bad_field_is_named(self) -> None:
        """One refusal tells of everything that is to be mended."""
        assert problem_with({"name": 1, "image": 2, "more": 3}, VmStart).split("; ") == [
            "name: expected str, got int",
            "image: expected str, got int",
            "extra fields found (more)",
        ]

    def test_of_a_validators_error_only_the_message_is_shown(self) -> None:
        """What else attrs puts into it is for programs."""
        assert problem_with({"level": "loud"}, Level) == (
            "'level' must be in ('info', 'debug') (got 'loud')"
        )

    @pytest.mark.parametrize(
        ("wire", "kind"),
        [
            ({"argv": [1] * 65_000}, ExecSpec),
            ({"shell": "a", "env": {str(n): n for n in range(60_000)}}, ExecSpec),
            ({"shell": "a", "env": {"k" * 500_000: 1}}, ExecSpec),
            ({"shell": "a", "k" * 500_000: 1}, ExecSpec),
            ({"name": "a"} | {str(n): n for n in range(60_000)}, VmName),
            ({"name": "a" * 500_000}, VmName),
            ({"name": "a", "names": ["a b"] * 50_000}, VmFork),
        ],
        ids=["list", "map", "long key", "long field", "many fields", "long name", "names"],
    )
    def test_a_refusal_is_short_whatever_was_refused(self, wire: Any, kind: Any) -> None:
        """It has to fit into a frame, and somebody has to read it."""
        problem = ""

        def refuse() -> None:
            nonlocal problem
            problem = problem_with(wire, kind)

        assert peak_memory(refuse) < 16 * 1024 * 1024
        assert 0 < len(problem) < 1000

    @pytest.mark.parametrize("kind", PARAMS, ids=name_of)
    def test_a_refusal_never_quotes_a_value(self, kind: Any) -> None:
        """Parameters hold tokens and keys, and errors end in logs."""
        wire = unstructure(sample(kind))
        for _, _, members in list(maps_in(wire, kind)):
            for name, value in list(members.items()):
                for canary in ("Canary \0", b"Canary", ["Canary"], {"x": "Canary"}):
                    members[name] = canary
                    assert "Canary" not in refusal(wire, kind)
                members[name] = value

    @pytest.mark.parametrize("kind", [Hello, Identity], ids=name_of)
    def test_secrets_are_left_out_of_the_text_form(self, kind: Any) -> None:
        """Whoever logs an object does not log the token or the key in it."""
        thing = sample(kind)
        secrets = {"token", "entropy", "ssh_host_key"} & unstructure(thing).keys()

        assert secrets
        assert not any(f"{name}=" in repr(thing) for name in secrets)
