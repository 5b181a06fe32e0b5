"""Draws what is random: identities, and names for runs that were given none."""

from random import Random
from secrets import SystemRandom
from typing import Final, cast
from uuid import UUID

from coolname import CoolnameConfigT, RandomGenerator
from coolname.data import config

from penstock.domain.clock import Clock
from penstock.domain.ids import new_id

RANDOM: Final = SystemRandom()

# Words of coolname that nobody wants to read in the log of a production system: what people call other people, what
# alarms whoever is on call, and what is funny only once.
_UNWANTED_WORDS: Final = """
aboriginal aggressive alluring ape arrogant baboon bald beaver belligerent berserk black blond booby chimpanzee
chubby crazy curvy dangerous demonic devout fanatic fat gay girlish godlike gorilla hairy hallowed heretic hog
hysterical illegal imperial infallible juicy kickass loutish macho manipulative meaty military mongrel monkey
mutant native naughty notorious offbeat orangutan orthodox petite pig primitive provocative pygmy radical
sarcastic sexy sloppy snobbish stereotyped stimulating swine undetectable uppish uptight vengeful venomous
vociferous white woodoo
"""
UNWANTED: Final = frozenset(_UNWANTED_WORDS.split())

# Its type is wider than what the generator takes.
WORDS: Final = cast(CoolnameConfigT, config)


class Drawing:
    """Draws from a clock and a source of randomness, both replaceable in tests."""

    def __init__(self, clock: Clock, random: Random = RANDOM) -> None:
        self._clock = clock
        self._random = random
        self._words = RandomGenerator(WORDS, random)

    def id(self) -> UUID:
        """A new identity, version 7."""
        return new_id(self._clock.now(), self._random)

    def name(self) -> str:
        """Two words that are pleasant to read and to say."""
        while True:
            words: list[str] = self._words.generate(2)
            if UNWANTED.isdisjoint(words):
                return "-".join(words)
