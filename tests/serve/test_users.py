"""Feedback and users over HTTP: storage, errors and deletion."""

import json
import uuid

import pytest

from tests.serve.asking import feedback, field_of


def test_feedback_is_taken_once_and_items_are_added(client):
    api = client()
    body = {"user_id": "u", "prefix": "La", "shown": ["Lamp", "mat"], "clicked_position": 0}
    assert feedback(api, **body)["stored"] == "new"
    assert feedback(api, **body)["stored"] == "same"
    assert feedback(api, user_id="u", ordered_items=["i1"])["stored"] == "more"
    assert field_of(feedback(api, 409, user_id="u", query="other")) == "query"
    assert field_of(feedback(api, 409, user_id="v", ordered_items=["i1"])) == "user_id"
    assert field_of(feedback(api, 404, request_id="r9", ordered_items=["i1"])) == "request_id"
    assert api.get("/users/u").json() == {"user_id": "u", "history": ["lamp"], "events": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a\u0000b",
        "a\u001fb",
        "a\u0085b",
        "a\u200bb",
        "\ufeffa",
        "a\x7f",
        "ﷺ" * 20,
        "\U0001f600" * 64,
    ]
    + ["a" * n for n in (64, 65, 128, 129)]
    + [" ", "a\tb", "İ" * 64, "\ue000", "é" * 64],
)
def test_both_routes_accept_the_same_texts(client, text):
    api = client()

    def refuses(path, **body):
        return api.post(path, json=body).status_code == 422

    def not_stored(**fields):
        return refuses("/feedback", request_id=uuid.uuid4().hex, **{"query": "a", **fields})

    fields = {"prefix": text, "user_id": text, "history": [text], "profile": {"age": text}}
    asked = [refuses("/suggest", **{name: value}) for name, value in fields.items()]
    assert [not_stored(**{name: value}) for name, value in fields.items()] == asked
    assert not_stored(query=text) == not_stored(shown=[text]) == asked[2], "as in a history"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"request_id": "../../etc", "query": "a"}, "request_id"),
        ({"request_id": "", "query": "a"}, "request_id"),
        ({"clicked_position": 0}, "clicked_position"),
        ({"shown": ["a"], "clicked_position": 1}, "clicked_position"),
        ({"shown": ["a"], "clicked_position": -1}, "clicked_position"),
        ({"shown": ["a"], "clicked_position": 0, "query": "b"}, "query"),
        ({"shown": ["a", " "], "clicked_position": 0}, "shown.1"),
        ({"query": "  "}, "query"),
        ({"query": "a", "clicked_items": [""]}, "clicked_items.0"),
        ({"query": "a", "ordered_items": ["i"] * 101}, "ordered_items"),
        ({"query": "a", "timestamp_ms": 5}, "timestamp_ms"),
        ({"query": "a", "profile": {"sex": "f"}}, "profile.sex"),
    ],
)
def test_invalid_feedback_is_refused(client, body, field):
    api = client()
    assert field_of(feedback(api, 422, **body)) == field
    assert api.store.count() == 0


def test_a_user_is_forgotten_on_request(client):
    api = client()
    name = "a/b ?&%é"
    feedback(api, user_id=name, query="secret")
    where = "/users/a%2Fb%20%3F%26%25%C3%A9"
    assert api.get(where).json()["history"] == ["secret"]
    reply = api.delete(where).json()
    assert (reply["user_id"], reply["deleted"]) == (name, 1)
    memory, model = [one["until"] for one in reply["remains"]]
    assert memory.startswith("each server has polled") and model.startswith("the next update")
    assert api.get(where).json()["events"] == 0
    assert api.delete("/users/").status_code == 422, "never all users without a name"


def test_a_deletion_says_which_exports_remain(client, tmp_path):
    api = client()
    feedback(api, user_id="u", query="secret")
    for name in ("there", "gone"):
        api.store.export(str(tmp_path / f"{name}.parquet"), untrusted=True)
    (tmp_path / "gone.parquet").unlink()
    remains = api.delete("/users/u").json()["remains"]
    assert [one["what"].split(" of ")[0] for one in remains[:-2]] == ["exported log there.parquet"]
    assert "model 0000" in remains[-1]["what"] and str(tmp_path) not in json.dumps(remains)
