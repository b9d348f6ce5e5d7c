"""Random invalid bodies from the interface's OpenAPI description: errors are named, never a 500."""

import json
import random

import pytest

STRINGS = [
    "",
    " ",
    "a",
    "é拖鞋",
    "\u202e\u200b",
    "ﷺ" * 30,
    "İ" * 64,
    "\u0000",
    "\ud800",
    "\udfff\ud800",
    "\U0001f600" * 40,
    "a" * 64,
    "a" * 65,
    "a" * 129,
    "a" * 5000,
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "'; DROP TABLE events; --",
    "%s%n{}{0}",
    "\n\r\t\x0b\x1c\x85",
    "\ufdd0\uffff",
]
NUMBERS = [0, -1, 1, 63, 64, 65, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308]
NUMBERS += [float("nan"), float("inf"), float("-inf")]


class Bodies:
    """Random bodies of one endpoint by its schema, partly invalid."""

    def __init__(self, api, path, chance):
        self.api, self.chance = api, chance
        body = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        self.schema = self.resolved(body["schema"])

    def resolved(self, schema):
        while "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            schema = self.api["components"]["schemas"][name]
        return schema

    def anything(self, depth=0):
        kind = self.chance.randrange(8 if depth < 3 else 5)
        if kind == 0:
            return None
        if kind == 1:
            return self.chance.choice([True, False])
        if kind == 2:
            return self.chance.choice(NUMBERS)
        if kind < 5:
            return self.chance.choice(STRINGS)
        if kind < 7:
            return [self.anything(depth + 1) for _ in range(self.chance.choice([0, 1, 3, 120]))]
        return {self.chance.choice(STRINGS): self.anything(depth + 1) for _ in range(3)}

    def of(self, schema):
        schema = self.resolved(schema)
        if self.chance.random() < 0.12:
            return self.anything()
        if "anyOf" in schema:
            return self.of(self.chance.choice(schema["anyOf"]))
        kind = schema.get("type")
        if kind == "object":
            names = [n for n in schema.get("properties", {}) if self.chance.random() < 0.6]
            made = {name: self.of(schema["properties"][name]) for name in names}
            if "additionalProperties" in schema and isinstance(
                schema["additionalProperties"], dict
            ):
                made["age"] = self.of(schema["additionalProperties"])
            return made
        if kind == "array":
            count = self.chance.choice([0, 1, 2, schema.get("maxItems", 4) + 1])
            return [self.of(schema["items"]) for _ in range(count)]
        if kind == "string":
            if "pattern" in schema:
                return self.chance.choice(["r1", f"r{self.chance.randrange(999)}", *STRINGS])
            return self.chance.choice(STRINGS)
        if kind in ("integer", "number"):
            return self.chance.choice(
                [schema.get("minimum", 0), schema.get("maximum", 9), *NUMBERS]
            )
        return self.chance.choice([True, False, None])

    def next(self):
        """The bytes of one body."""
        text = json.dumps(self.of(self.schema))  # with NaN and lone surrogates
        broken = self.chance.random()
        if broken < 0.03:
            text = text[: self.chance.randrange(len(text) + 1)]
        elif broken < 0.05:
            text = '{"prefix":' * 2000 + text
        content = text.encode()
        if 0.05 < broken < 0.08:
            content = bytes(self.chance.randrange(256) for _ in range(self.chance.randrange(60)))
        elif broken > 0.98:
            content = text.encode("utf-16")
        return content


def bombard(service, count, seed):
    api = service.get("/openapi.json").json()
    names = {
        name
        for schema in api["components"]["schemas"].values()
        for name in schema.get("properties", {})
    }
    chance = random.Random(seed)
    makers = [(path, Bodies(api, path, chance)) for path in ("/suggest", "/feedback")]
    codes = {}
    for number in range(count):
        path, bodies = makers[number % 2]
        content = bodies.next()
        reply = service.post(path, content=content, headers={"content-type": "application/json"})
        codes[reply.status_code] = codes.get(reply.status_code, 0) + 1
        missed = reply.status_code == 504 and b"deadline_ms" in content  # a deadline of 1 ms, say
        expected = reply.status_code == 200 or 400 <= reply.status_code < 500 or missed
        assert expected, (seed, number, reply.status_code, content)
        if reply.status_code in (400, 422):
            for error in reply.json()["errors"]:
                first = error["field"].split(".")[0]
                surplus = error["message"].startswith("Extra")  # an unknown field
                assert surplus or first in names | {"body", "?"}, (seed, number, error)
                assert error["message"] and "script" not in error["message"]
    assert service.post("/suggest", json={"prefix": "a"}).status_code == 200
    return codes


@pytest.mark.parametrize(
    "count",
    [pytest.param(1000, marks=pytest.mark.long), pytest.param(10_000, marks=pytest.mark.slow)],
)
def test_bad_bodies(client, count):
    codes = bombard(client(), count, seed=count)
    assert sum(codes.values()) == count
    assert codes[422] > count / 2 and codes[200] > 0 and codes[400] > 0
