"""One page of a list, as an answer: what fits into a message, and the token of what comes after it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from penstock.wire.pages import PageTokens, Position, TimeAndId, fitting

Value = TypeVar("Value")
Proto = TypeVar("Proto", bound=Message)


def listing(
    found: Sequence[Value],
    size: int,
    to_proto: Callable[[Value], Proto],
    key_of: Callable[[Value], TimeAndId | Position],
    tokens: PageTokens,
    query: Message,
) -> tuple[Sequence[Proto], str]:
    """The page to show and its next page token. `found` holds one more than `size` where there is more."""
    shown = fitting([to_proto(each) for each in found[:size]])
    if len(shown) == len(found):
        return shown, ""
    return shown, tokens.seal(key_of(found[len(shown) - 1]), query)
