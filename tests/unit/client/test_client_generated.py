"""The blocking client has what the async one has, and its file is what the generator writes."""

from __future__ import annotations

import inspect

import pytest

from roost.client import AsyncClient, AsyncTurn, Client, Turn
from roost.client import _generate as generate


def public(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls) if not name.startswith("_")}


def test_both_clients_offer_the_same() -> None:
    assert public(Client) >= public(AsyncClient)
    for name in public(AsyncClient):
        ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
        if callable(theirs):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
            assert ours.__doc__


def test_both_turns_offer_the_same() -> None:
    internal = {"lose", "renewed"}
    assert public(Turn) >= public(AsyncTurn) - internal


def test_the_sync_client_is_up_to_date() -> None:
    assert generate.SYNC.read_text("utf-8") == generate.sync_client()


@pytest.mark.parametrize(
    ("reason", "name"), [("TURN_IN_PROGRESS", "TurnInProgress"), ("SESSION_CLOSED", "SessionClosed")]
)
def test_names_of_classes(reason: str, name: str) -> None:
    assert generate.class_name(reason) == name


def test_the_error_classes_are_up_to_date() -> None:
    pytest.importorskip("roost._core")
    assert generate.ERRORS.read_text("utf-8") == generate.error_classes()
