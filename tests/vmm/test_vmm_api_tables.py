"""The tables that the fakes check requests with agree with the official descriptions.

Those are not part of this project. Where they are at hand, ``ARRAKIS_API_DESCRIPTIONS`` names
their directory; elsewhere these tests are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fakes.api_tables import CLOUD_HYPERVISOR, FIRECRACKER, UNDESCRIBED, problem
from vmm_harness import Rig

yaml = pytest.importorskip("yaml")

DIRECTORY = os.environ.get("ARRAKIS_API_DESCRIPTIONS")
TABLES = {"cloud-hypervisor": CLOUD_HYPERVISOR, "firecracker": FIRECRACKER}
TYPES = {"string": str, "integer": int, "boolean": bool}

described = pytest.mark.skipif(
    DIRECTORY is None, reason="ARRAKIS_API_DESCRIPTIONS names no official descriptions"
)


class Description:
    """An official description, be it OpenAPI 3 or Swagger 2."""

    def __init__(self, kind: str) -> None:
        text = Path(str(DIRECTORY), f"{kind}-api.yaml").read_text()
        self.content: dict[str, Any] = yaml.safe_load(text)

    def operation(self, name: str) -> dict[str, Any]:
        method, path = name.split()
        return self.content["paths"][path][method.lower()]

    def body(self, name: str) -> dict[str, Any] | None:
        operation = self.operation(name)
        if "requestBody" in operation:
            return operation["requestBody"]["content"]["application/json"]["schema"]
        bodies = [one for one in operation.get("parameters", []) if one["in"] == "body"]
        return bodies[0]["schema"] if bodies else None

    def resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        while reference := schema.get("$ref"):
            schema = self.content
            for part in reference.removeprefix("#/").split("/"):
                schema = schema[part]
        return schema

    def check(self, schema: dict[str, Any], value: object) -> None:
        jsonschema.validate(value, {**self.content, **schema})


def differences(
    description: Description, schema: dict[str, Any], table: Any, where: str
) -> Iterator[str]:
    """Say where a table claims what the description does not."""
    official = description.resolve(schema)
    if isinstance(table, set):
        if not table <= set(official.get("enum", [])):
            yield f"{where}: {table} are not among {official.get('enum')}"
    elif isinstance(table, type):
        if TYPES.get(official["type"]) is not table:
            yield f"{where}: is {official['type']}"
    elif isinstance(table, list):
        yield from differences(description, official["items"], table[0], f"{where}[]")
    else:
        names = {name.rstrip("!") for name in table}
        required = {name.rstrip("!") for name in table if name.endswith("!")}
        if set(official.get("required", [])) != required:
            yield f"{where}: {official.get('required', [])} are required"
        properties = official.get("properties", {})
        if unknown := names - properties.keys() - UNDESCRIBED:
            yield f"{where}: has no {unknown}"
        for name, inner in table.items():
            field = name.rstrip("!")
            if field in properties:
                yield from differences(description, properties[field], inner, f"{where}.{field}")


@described
@pytest.mark.parametrize("kind", TABLES)
def test_tables(kind: str) -> None:
    """Every endpoint, field and value of a table is in the description, and what it requires."""
    description = Description(kind)
    found = []
    for name, table in TABLES[kind].items():
        body = description.body(name)
        if table is None or body is None:
            assert table is None, f"{name} takes no body"
            assert body is None, f"{name} takes a body"
        else:
            found += differences(description, body, table, name)
    assert found == []


async def test_requests(rig: Rig) -> None:
    """All that a whole life sends passes the table, and the answers are those of success."""
    await live(rig)
    calls = rig.fake.calls()
    assert {call.status for call in calls} == {200}
    names = {call.name for call in calls}
    table = TABLES[rig.fake.kind]
    used = {name for name in table if name in names or "{" in name}
    assert used == table.keys() - {"PUT /vm.add-net"}


@described
async def test_described_requests(rig: Rig) -> None:
    """All that a whole life sends, and the fake's answers, validate against the description."""
    await live(rig)
    description = Description(rig.fake.kind)
    for call in rig.fake.calls():
        name = "PUT /drives/{drive_id}" if "/drives/" in call.target else call.name
        if schema := description.body(name):
            description.check(schema, call.body)
        answers = description.operation(name)["responses"]
        if call.answer is None:
            assert 204 in answers
        else:
            good = answers[200]
            schema = good.get("schema") or good["content"]["application/json"]["schema"]
            description.check(schema, call.answer)


async def live(rig: Rig) -> None:
    """Boot, save, wake, pause, take a snapshot, and wake that."""
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        await vmm.pause()
        stored, layer, _ = await rig.snapshot("one", 1, vmm, template)
        await vmm.resume()
    async with rig.woken("two", stored, layer):
        pass


@pytest.mark.parametrize(
    ("schema", "value", "wrong"),
    [
        ({"a!": int}, {"a": 1}, None),
        ({"a!": int}, {}, "['a'] unknown or missing"),
        ({"a": int}, {"b": 1}, "['b'] unknown or missing"),
        ({"a": int}, {"a": True}, "the body.a is True, no int"),
        ({"a": [{"b": {"X"}}]}, {"a": [{"b": "Y"}]}, "the body.a[0].b is 'Y'"),
        (None, {}, "the body should be empty"),
        ([int], 1, "the body is no list"),
        ({"a": int}, [], "the body is no object"),
    ],
)
def test_problem(schema: Any, value: Any, wrong: str | None) -> None:
    """A body that is not as the table says is found out, and where."""
    found = problem(schema, value)
    assert found == wrong if wrong is None else wrong in str(found)
