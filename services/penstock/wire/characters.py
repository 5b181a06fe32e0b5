"""Which characters names, labels and keys may hold, so that what is read is what is there.

A name is shown in terminals, tables and logs, beside other names. So it holds nothing that steers a terminal, changes
the direction of writing, or cannot be seen; within that, it may be written in any script, composed or decomposed, and
hold any emoji.
"""

import re
import unicodedata
from typing import Final

# How many accents one character may bear: more than any script needs, and too few to reach into other lines.
MARKS_MAX: Final = 8

_DIRECTIONS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JOINERS: Final = frozenset("\u200c\u200d")
# Of the class of format characters, but seen: signs that stand before or around numbers.
_SEEN: Final = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
# Of other classes, but not seen: fillers, blanks, and a joiner that joins nothing.
_UNSEEN: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# The flag of a part of a country is a black flag followed by its code in letters that are not seen.
_FLAG: Final = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")
_NOT_IN_A_LABEL: Final = frozenset(",;'\"`\\")


def fault_of_name(name: str) -> str | None:
    """What is wrong with a name, as a sentence without a subject; None if nothing is. Only the first fault is told."""
    flags = {place for flag in _FLAG.finditer(name) for place in range(*flag.span())}
    marks = 0
    before = ""
    for place, character in enumerate(name):
        if place in flags:
            marks, before = 0, character
            continue
        if fault := _fault_of(character):
            return _told(character, place, fault)
        if character in _JOINERS:
            if not before or before in _JOINERS or before.isspace():
                return _told(character, place, "which joins nothing there")
        elif unicodedata.category(character).startswith("M"):
            marks += 1
            if not before or before.isspace():
                return _told(character, place, "a combining mark without a character to stand on")
            if marks > MARKS_MAX:
                return _told(character, place, f"more than {MARKS_MAX} combining marks on one")
        else:
            marks = 0
        before = character
    return None


def fault_of_label(label: str) -> str | None:
    """The same for a label, which must also be safe to list, to quote and to compare."""
    if fault := fault_of_name(label):
        return fault
    for place in (0, len(label) - 1):
        if label and label[place].isspace():
            return _told(label[place], place, "white space at an end")
    for place, character in enumerate(label):
        if character in _NOT_IN_A_LABEL:
            return f"holds {character} as character {place + 1}; a label has no comma, semicolon, quote or backslash"
    return None


def fault_of_key(key: str) -> str | None:
    """The same for an idempotency key, which is compared and rarely shown: only what steers a terminal is wrong."""
    for place, character in enumerate(key):
        if unicodedata.category(character) == "Cc":
            return _told(character, place, "a control character")
    return None


def _fault_of(character: str) -> str | None:
    """What is wrong with a character wherever it stands."""
    if character.isascii() and character.isprintable():
        return None
    if character in _DIRECTIONS:
        return "which changes the direction of writing"
    match unicodedata.category(character):
        case "Cc":
            return "a control character"
        case "Cs":
            return "half of a surrogate pair"
        case "Zl" | "Zp":
            return "which breaks the line"
        case "Cf" if character not in _JOINERS | _SEEN:
            return "which cannot be seen"
    return "which cannot be seen" if character in _UNSEEN else None


def _told(character: str, place: int, fault: str) -> str:
    name = unicodedata.name(character, "")
    return f"holds U+{ord(character):04X}{f' ({name})' if name else ''} as character {place + 1}, {fault}"
