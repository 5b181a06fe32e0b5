"""Tests of `penstock.wire.listing`."""

from flowrun.v1 import flow_run_pb2, flow_run_service_pb2
from penstock.domain.limits import PAGE_BYTES_MAX
from penstock.wire.listing import listing
from penstock.wire.pages import PageTokens, Position

TOKENS = PageTokens(b"k" * 32)
QUERY = flow_run_service_pb2.ListTransitionsRequest(flow_run_id="run-1")


def page_of(found: list[int], size: int, *, message: str = "") -> tuple[list[int], Position | None]:
    """The versions shown, and the key that the token of the next page holds."""

    def to_proto(version: int) -> flow_run_pb2.Transition:
        return flow_run_pb2.Transition(version=version, message=message)

    shown, token = listing(found, size, to_proto, lambda version: (version,), TOKENS, QUERY)
    after = TOKENS.open(token, QUERY) if token else None
    assert after is None or len(after) == 1
    return [each.version for each in shown], after


def test_the_last_page() -> None:
    """A page after which nothing comes has no token, even if it is full."""
    assert page_of([1, 2], 2) == ([1, 2], None)
    assert page_of([], 2) == ([], None)


def test_a_page_before_the_last() -> None:
    """A page after which something comes has a token that goes on after its last item."""
    assert page_of([1, 2, 3], 2) == ([1, 2], (2,))


def test_a_page_cut_by_bytes() -> None:
    """What does not fit into a message comes on the next page."""
    third = "x" * (PAGE_BYTES_MAX * 2 // 5)

    assert page_of([1, 2, 3], 10, message=third) == ([1, 2], (2,))
