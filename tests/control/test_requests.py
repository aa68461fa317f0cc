"""Requests to key-service as JSON: each comes back as it was, and the schema says what is read."""

import json
from typing import Any

import pytest
from tests.schemas import check, misfit, schema

from stagewire.config.operations import RenamePeer
from stagewire.control import requests
from stagewire.control.requests import Adopt, Apply, Asked, BackedUp, Confirm, Operate, Request, Unconfirmed
from stagewire.control.shapes import BadOperation

EACH: list[Request] = [
    Apply(), Apply(dry_run=True, confirm=60, trial="ab"), Confirm(), Unconfirmed("ab"), Operate(RenamePeer("a", "b")),
    Adopt(), BackedUp("one.backup"),
]  # fmt: skip
ODD: list[Any] = [
    [], {}, {"do": "later"}, {"do": ["apply"]}, {"version": 2, "do": "apply"}, {"version": True, "do": "apply"},
    {"do": "apply", "confirm": -1}, {"do": "apply", "confirm": 86401}, {"do": "apply", "confirm": True},
    {"do": "apply", "file": "x"}, {"do": "confirm", "length": -1}, {"do": "confirm", "by": "x" * 65}, {"do": "operate"},
    {"do": "operate", "operation": {"version": 1, "do": "RenamePeer"}}, {"do": "backed_up"}, {"do": "adopt", "by": 5},
]  # fmt: skip


@pytest.mark.parametrize("request_", EACH, ids=repr)
def test_each_request_comes_back_and_fits_the_schema(request_: Request) -> None:
    said = json.loads(json.dumps(requests.to_json(request_, "anna", 7)))
    assert requests.from_json_untrusted(said) == Asked(request_, "anna", 7)
    check(said, "requests")


@pytest.mark.parametrize("said", ODD, ids=repr)
def test_anything_else_is_refused_by_both(said: Any) -> None:
    with pytest.raises(BadOperation):
        requests.from_json_untrusted(said)
    assert misfit({"version": 1, **said} if isinstance(said, dict) else said, schema("requests"))


def test_a_client_from_before_an_upgrade_says_no_version() -> None:
    assert requests.from_json_untrusted({"do": "confirm", "length": 0}).request == Confirm()


def test_the_schema_in_docs_is_the_one_of_the_code() -> None:
    assert schema("requests") == requests.schema(), "write it anew from stagewire.control.requests.schema()"
