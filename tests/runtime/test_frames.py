"""Messages on a stream of bytes."""

import pytest

from penstock.runtime.frames import Frames, framed

MESSAGES = [b"", b"water", b"", b"x" * 300]


@pytest.mark.parametrize("size", [1, 2, 5, 1_000])
def test_messages_arrive_whole_however_they_are_cut(size: int) -> None:
    """Empty ones too."""
    sent = b"".join(map(framed, MESSAGES))
    frames = Frames()

    arrived = [message for start in range(0, len(sent), size) for message in frames.feed(sent[start : start + size])]

    assert MESSAGES == arrived
