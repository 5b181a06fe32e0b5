"""Text from elsewhere on a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.safe_text import safe


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 🙂", "plain é 日本 🙂"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H"),
        ("50%\r100%", r"50%\r100%"),
        ("a\u202eb", r"a\u202eb"),
        ("tab\tstays", "tab\tstays"),
        ("\x9b31m", r"\x9b31m"),
        ("two\nlines", r"two\nlines"),
        ("👩\u200d🔧", "👩\u200d🔧"),
    ],
)
def test_controls_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    """Colours are left out, other controls are shown as escapes, everything else stays."""
    assert shown == safe(text)


@given(st.text())
def test_no_text_leaves_a_control_character(text: str) -> None:
    """Whatever comes in, nothing that a terminal obeys comes out."""
    assert not any(ord(character) < 32 and character != "\t" for character in safe(text))
    assert not any(127 <= ord(character) < 160 for character in safe(text))
