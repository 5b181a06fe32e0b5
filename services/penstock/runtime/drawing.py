"""Draws what is random: identities, and names for runs that were given none."""

import secrets
from typing import Final
from uuid import UUID

import coolname

from penstock.domain.clock import Clock
from penstock.domain.ids import Randomness, new_id

RANDOM: Final[Randomness] = secrets.SystemRandom()


class Drawing:
    """Draws from a clock and a source of randomness, both replaceable in tests."""

    def __init__(self, clock: Clock, random: Randomness = RANDOM) -> None:
        self._clock = clock
        self._random = random

    def id(self) -> UUID:
        """A new identity, version 7."""
        return new_id(self._clock.now(), self._random)

    def name(self) -> str:
        """Two words that are pleasant to read and to say."""
        name: str = coolname.generate_slug(2)
        return name
