"""Text from elsewhere, made safe to show: a log line must not be able to colour, move or rewrite a terminal."""

import re
import unicodedata
from typing import Final

# What programs send to colour their output: dropped, because nothing of what they say is lost with it.
_COLOURS: Final = re.compile(r"\x1b\[[0-9;:]*[mK]")

# Controls and formats (the direction of writing among them), line and paragraph ends, and what is no character.
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

# The joiners within emoji and some scripts only tie neighbours together.
_HARMLESS: Final = frozenset("\t\u200c\u200d")


def safe(text: str) -> str:
    """The text with colours left out and every other control character shown as its escape."""
    plain = _COLOURS.sub("", text)
    if plain.isprintable():
        return plain
    return "".join(map(_shown, plain))


def _shown(character: str) -> str:
    if character in _HARMLESS or unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape").decode()
