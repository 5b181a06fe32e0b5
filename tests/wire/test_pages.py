"""Tests of `penstock.wire.pages`."""

import base64
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrun.v1 import flow_run_pb2, flow_run_service_pb2, flow_service_pb2, log_service_pb2
from penstock.domain.errors import PageTokenInvalid
from penstock.domain.ids import FlowRunId
from penstock.domain.limits import PAGE_BYTES_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from penstock.domain.queries import Page, PositionPage
from penstock.wire.checks import Checks
from penstock.wire.pages import (
    PageTokens,
    cursor_of,
    fitting,
    page_of,
    page_size_of,
    position_of,
    position_page_of,
)
from tests.domain.builders import RUN_ID
from tests.support.fake_clock import NOON
from tests.wire.refusing import wrong

TOKENS = PageTokens(b"k" * 32)
KEY = (NOON.add(microseconds=1), UUID(int=5))
QUERY = flow_run_service_pb2.ListFlowRunsRequest(name="levels")
LOGS = log_service_pb2.ListLogsRequest(flow_run_id=str(RUN_ID))


def test_a_page_follows_another() -> None:
    """The token of a page leads to the key after which the next one begins, whatever size it shall have."""
    request = flow_run_service_pb2.ListFlowRunsRequest(name="levels", page_size=7, page_token=TOKENS.seal(KEY, QUERY))

    assert Page(7, KEY) == page_of(request, Checks(), TOKENS)
    assert Page(PAGE_SIZE_DEFAULT) == page_of(QUERY, Checks(), TOKENS)


def test_a_page_of_positions_follows_another() -> None:
    """Lists that are ordered by a position go on after it."""
    request = log_service_pb2.ListLogsRequest(flow_run_id=str(RUN_ID), page_token=TOKENS.seal((2**63 - 1,), LOGS))

    assert PositionPage(PAGE_SIZE_DEFAULT, 2**63 - 1) == position_page_of(request, Checks(), TOKENS)
    assert PositionPage(PAGE_SIZE_DEFAULT, 0) == position_page_of(LOGS, Checks(), TOKENS)


def test_tokens_fit_into_an_address() -> None:
    """A token is text that needs no escape in a URL."""
    assert set(TOKENS.seal(KEY, QUERY)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    "other",
    [
        flow_run_service_pb2.ListFlowRunsRequest(name="other"),
        flow_run_service_pb2.ListFlowRunsRequest(name="levels", states=[flow_run_pb2.FLOW_RUN_STATE_FAILED]),
        flow_service_pb2.ListFlowsRequest(name="levels"),
        # On the wire this one is the same bytes as the query, under another name.
        flow_service_pb2.ListFlowsRequest.FromString(QUERY.SerializeToString()),
    ],
    ids=["other name", "other states", "other rpc", "other rpc, same bytes"],
)
def test_a_token_of_another_query(other: Any) -> None:
    """A token is good for one query only."""
    with pytest.raises(PageTokenInvalid, match="another query or by another installation"):
        TOKENS.open(TOKENS.seal(KEY, QUERY), other)


def test_a_token_of_another_installation() -> None:
    """A token of another signing key is refused."""
    with pytest.raises(PageTokenInvalid, match="another query or by another installation"):
        PageTokens(b"other" * 8).open(TOKENS.seal(KEY, QUERY), QUERY)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_token_that_was_changed(place: int, flip: int) -> None:
    """Whichever byte of a token is changed, it is refused."""
    sealed = bytearray(base64.urlsafe_b64decode(TOKENS.seal(KEY, QUERY) + "=="))
    sealed[place % len(sealed)] ^= flip

    with pytest.raises(PageTokenInvalid):
        TOKENS.open(base64.urlsafe_b64encode(bytes(sealed)).decode(), QUERY)


@given(st.text())
def test_a_token_that_was_made_up(token: str) -> None:
    """Whatever somebody writes into a page token is refused, and nothing crashes."""
    with pytest.raises(PageTokenInvalid):
        TOKENS.open(token, QUERY)


def test_a_key_of_another_kind() -> None:
    """A token that holds another kind of key than the list is ordered by is refused, though it is genuine."""
    by_time = flow_run_service_pb2.ListFlowRunsRequest(name="levels", page_token=TOKENS.seal((5,), QUERY))
    by_position = log_service_pb2.ListLogsRequest(flow_run_id=str(RUN_ID), page_token=TOKENS.seal(KEY, LOGS))

    with pytest.raises(PageTokenInvalid, match="another kind"):
        page_of(by_time, Checks(), TOKENS)
    with pytest.raises(PageTokenInvalid, match="another kind"):
        position_page_of(by_position, Checks(), TOKENS)


@pytest.mark.parametrize(
    ("asked", "size"),
    [(0, PAGE_SIZE_DEFAULT), (1, 1), (PAGE_SIZE_MAX, PAGE_SIZE_MAX), (PAGE_SIZE_MAX + 1, PAGE_SIZE_MAX)],
)
def test_page_sizes(asked: int, size: int) -> None:
    """No size means the usual one, and too large a one is cut."""
    assert size == page_size_of(Checks(), flow_run_service_pb2.ListFlowRunsRequest(page_size=asked))


def test_a_negative_page_size() -> None:
    """A negative size is a violation like any other."""
    checks = Checks()
    page_size_of(checks, flow_run_service_pb2.ListFlowRunsRequest(page_size=-1))

    assert wrong(checks.done) == [("page_size", "is -1; it must not be negative")]


def test_cursors() -> None:
    """A cursor leads a tail of its run on, and no other; none at all is the beginning."""
    cursor = cursor_of(41, RUN_ID, TOKENS)

    assert (position_of(cursor, RUN_ID, TOKENS), position_of("", RUN_ID, TOKENS)) == (41, 0)
    with pytest.raises(PageTokenInvalid):
        position_of(cursor, FlowRunId(UUID(int=1)), TOKENS)


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ([], 0),
        ([100, 100], 2),
        ([PAGE_BYTES_MAX - 100, 100], 2),
        ([PAGE_BYTES_MAX - 100, 101], 1),
        ([PAGE_BYTES_MAX + 1, 10], 1),
        ([10, PAGE_BYTES_MAX], 1),
    ],
)
def test_what_fits_into_a_message(sizes: list[int], kept: int, of_size: Callable[[int], Any]) -> None:
    """A page ends early by bytes, but is never empty where there is something to show."""
    items = [of_size(size) for size in sizes]

    assert items[:kept] == list(fitting(items))


@pytest.fixture(scope="module")
def of_size() -> Callable[[int], flow_run_pb2.FlowRun]:
    """Makes a message of exactly so many bytes."""

    def make(size: int) -> flow_run_pb2.FlowRun:
        run = flow_run_pb2.FlowRun(name="x" * size)
        run.name = "x" * (2 * size - run.ByteSize())
        assert size == run.ByteSize()
        return run

    return make


@given(st.binary(max_size=2_000))
def test_bytes_that_were_made_up(sealed: bytes) -> None:
    """However long a forged token is, it is refused."""
    with pytest.raises(PageTokenInvalid):
        TOKENS.open(base64.urlsafe_b64encode(sealed).decode(), QUERY)


@pytest.mark.parametrize("size", [0, 15, 16, 271, 272, 100_000])
def test_forged_tokens_of_any_size(size: int) -> None:
    """Neither a token shorter than its signature nor one of many bytes does more than be refused."""
    with pytest.raises(PageTokenInvalid):
        TOKENS.open(base64.urlsafe_b64encode(bytes(size)).decode(), QUERY)
