"""Tests of `penstock.domain.ids`."""

from datetime import timedelta
from random import Random

from penstock.domain.ids import DEFAULT_TENANT, new_id
from tests.support.fake_clock import NOON


class Ones:
    """A source that only knows ones, so that every random bit shows."""

    def getrandbits(self, k: int, /) -> int:
        return (1 << k) - 1


def test_version_and_time() -> None:
    """An id is a UUID of version 7 that begins with the milliseconds of its moment; all other bits are random."""
    drawn = new_id(NOON + timedelta(microseconds=1_999), Ones())

    assert drawn.version == 7
    assert drawn.variant == "specified in RFC 4122"
    assert int(NOON.timestamp() * 1000) + 1 == drawn.int >> 80
    assert drawn.int & ((1 << 62) - 1) == (1 << 62) - 1
    assert (drawn.int >> 64) & 0xFFF == (1 << 12) - 1


def test_later_ids_sort_later() -> None:
    """Ids of later milliseconds sort later, whatever was random."""
    random = Random(1)

    drawn = [new_id(NOON + timedelta(milliseconds=step), random) for step in range(100)]

    assert sorted(drawn) == drawn


def test_ids_differ() -> None:
    """Ids of one moment differ."""
    random = Random(1)

    assert len({new_id(NOON, random) for _ in range(1_000)}) == 1_000


def test_the_default_tenant() -> None:
    """The default tenant is the same everywhere, for ever."""
    assert str(DEFAULT_TENANT) == "00000000-0000-7000-8000-000000000001"
