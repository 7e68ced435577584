from __future__ import annotations

import pytest

from kars_router.wire import eras


def test_the_newest_revision_is_asked_for() -> None:
    assert eras.LATEST_HANDSHAKE == "2025-11-25"
    assert list(eras.HANDSHAKE_REVISIONS) == sorted(eras.HANDSHAKE_REVISIONS, reverse=True)


@pytest.mark.parametrize("revision", eras.HANDSHAKE_REVISIONS)
def test_a_known_revision_is_agreed_to(revision: str) -> None:
    assert eras.negotiate(revision) == revision
    assert eras.is_usable(revision)


@pytest.mark.parametrize("revision", ["2026-07-28", "1999-01-01", ""])
def test_an_unknown_revision_gets_the_latest_and_is_not_usable(revision: str) -> None:
    assert eras.negotiate(revision) == eras.LATEST_HANDSHAKE
    assert not eras.is_usable(revision)


def test_the_oldest_revision_is_taken_from_servers_only() -> None:
    assert eras.is_usable("2024-11-05")
    assert eras.negotiate("2024-11-05") == eras.LATEST_HANDSHAKE


@pytest.mark.parametrize("revision", eras.STATELESS_REVISIONS)
def test_a_revision_without_handshakes_is_never_agreed_to_in_one(revision: str) -> None:
    assert eras.LATEST_STATELESS in eras.STATELESS_REVISIONS
    assert eras.negotiate(revision) == eras.LATEST_HANDSHAKE
    assert not eras.is_usable(revision)


def test_batches_belong_to_one_revision() -> None:
    assert [eras.allows_batch(r) for r in eras.HANDSHAKE_REVISIONS] == [False, False, True]


@pytest.mark.parametrize(
    ("header", "json", "stream"),
    [
        ("application/json, text/event-stream", True, True),
        ("application/json", True, False),
        ("*/*", True, True),
        ("text/*;q=0.5", False, True),
        ("Application/JSON;charset=utf-8", True, False),
        ("application/json;q=0.0", False, False),
        ("application/json;q=0, */*", False, True),
        ("*/*, application/json;q=0", False, True),
        ("*/*;q=0, text/event-stream", False, True),
        ("text/*;q=0, text/event-stream;q=0.001, */*", True, True),
        ("text/event-stream, application/*;q=0, */*;q=1", False, True),
        ("application/json;q=0, application/json;charset=utf-8", True, False),
        ("application/json, application/json;q=0", True, False),
        ("*/*;q=0", False, False),
        ("text/html", False, False),
        ("", False, False),
    ],
)
def test_what_an_accept_header_admits(header: str, json: bool, stream: bool) -> None:
    assert eras.accepts(header, eras.JSON_TYPE) is json
    assert eras.accepts(header, eras.STREAM_TYPE) is stream


@pytest.mark.parametrize("header", ["", " \t", *eras.HANDSHAKE_REVISIONS, " 2024-11-05 "])
def test_a_header_of_the_handshake_era_or_none_is_no_sign_of_the_other(header: str) -> None:
    assert not eras.is_stateless(header)


@pytest.mark.parametrize("header", [*eras.STATELESS_REVISIONS, "\t2099-01-01", "latest"])
def test_whatever_the_handshake_era_does_not_know_is_one_of_the_stateless_era(header: str) -> None:
    assert eras.is_stateless(header)
