"""Tests of `penstock.wire.characters`."""

import unicodedata

import pytest

from penstock.wire.characters import MARKS_MAX, fault_of_key, fault_of_label, fault_of_name

PLAIN = [
    "hello-world",
    "a b",
    "'; DROP TABLE flow_runs; --",
    "ünïcödé",
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    unicodedata.normalize("NFD", "Việt Nam"),
    "שלום עולם",
    "שָׁלוֹם",
    "مرحبا بالعالم",
    "مَرْحَبًا",
    "می\u200cخواهم",
    "\u0601١٢٣",
    "नमस्ते दुनिया",
    "क्\u200dष",
    "สวัสดี",
    "你好",
    "こんにちは",
    "안녕",
    "👩\u200d👩\u200d👧\u200d👦",
    "❤\ufe0f\u200d🔥",
    "👍🏽",
    "1\ufe0f\u20e3",
    "🇨🇭",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "葛\U000e0100",
    "e" + "\u0301" * MARKS_MAX,
    "a\u00a0b",
]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names_of_every_script(name: str) -> None:
    """However people write, composed or decomposed, with joiners and emoji, a name is a name."""
    assert fault_of_name(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a\nb", "holds U+000A as character 2, a control character"),
        ("\x1b[31mred", "holds U+001B as character 1, a control character"),
        ("ab\x7f", "holds U+007F as character 3, a control character"),
        ("a\x85", "holds U+0085 as character 2, a control character"),
        ("a\u2028b", "holds U+2028 (LINE SEPARATOR) as character 2, which breaks the line"),
        ("a\u2029b", "holds U+2029 (PARAGRAPH SEPARATOR) as character 2, which breaks the line"),
        ("a\ud800", "holds U+D800 as character 2, half of a surrogate pair"),
        ("\ufeffa", "holds U+FEFF (ZERO WIDTH NO-BREAK SPACE) as character 1, which cannot be seen"),
        ("so\u00adft", "holds U+00AD (SOFT HYPHEN) as character 3, which cannot be seen"),
        ("a\u200bb", "holds U+200B (ZERO WIDTH SPACE) as character 2, which cannot be seen"),
        ("a\u2060b", "holds U+2060 (WORD JOINER) as character 2, which cannot be seen"),
        ("\u3164", "holds U+3164 (HANGUL FILLER) as character 1, which cannot be seen"),
        ("a\U000e0041", "holds U+E0041 (TAG LATIN CAPITAL LETTER A) as character 2, which cannot be seen"),
        ("\u0301a", "holds U+0301 (COMBINING ACUTE ACCENT) as character 1, a combining mark without a character"),
        (" \u0301", "holds U+0301 (COMBINING ACUTE ACCENT) as character 2, a combining mark without a character"),
        ("e" + "\u0301" * 9, "holds U+0301 (COMBINING ACUTE ACCENT) as character 10, more than 8 combining marks"),
        ("e" + "\u0301\u200d" * 9, "holds U+0301 (COMBINING ACUTE ACCENT) as character 18, more than 8 combining"),
        ("\u200d", "holds U+200D (ZERO WIDTH JOINER) as character 1, which joins nothing there"),
        ("a\u200c\u200d", "holds U+200D (ZERO WIDTH JOINER) as character 3, which joins nothing there"),
        ("a \u200c", "holds U+200C (ZERO WIDTH NON-JOINER) as character 3, which joins nothing there"),
    ],
)
def test_names_that_are_not_what_they_look_like(name: str, fault: str) -> None:
    """What steers a terminal, breaks a line, hides or heaps up is named with its place."""
    assert (fault_of_name(name) or "").startswith(fault)


@pytest.mark.parametrize("character", "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_names_that_change_the_direction_of_writing(character: str) -> None:
    """No script needs such a character in a name, and with one another name is shown than there is."""
    assert fault_of_name(f"report{character}fdp.py") == (
        f"holds U+{ord(character):04X} ({unicodedata.name(character)}) as character 7, "
        "which changes the direction of writing"
    )


def test_a_flag_hides_no_text() -> None:
    """Unseen letters make the flag of a part of a country, and no longer text, nor without a flag or an end."""
    flag, end = "\U0001f3f4", "\U000e007f"
    hidden = "\U000e0067" * 7
    for name in (flag + hidden + end, flag + hidden[:5], hidden[:5] + end, f"a{end}"):
        assert "which cannot be seen" in (fault_of_name(name) or "")


@pytest.mark.parametrize("label", ["gpu", "team:data", "a b", "a/b=c", "größe", "קו"])
def test_plain_labels(label: str) -> None:
    """A label may be written in any script, with inner spaces and most signs."""
    assert fault_of_label(label) is None


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ("a,b", "holds , as character 2; a label has no comma, semicolon, quote or backslash"),
        ("a;", "holds ; as character 2; a label"),
        ("'a", "holds ' as character 1; a label"),
        ('a"b', 'holds " as character 2; a label'),
        ("`a", "holds ` as character 1; a label"),
        ("a\\b", "holds \\ as character 2; a label"),
        ("'; DROP TABLE flow_runs; --", "holds ' as character 1; a label"),
        (" a", "holds U+0020 (SPACE) as character 1, white space at an end"),
        ("a\u00a0", "holds U+00A0 (NO-BREAK SPACE) as character 2, white space at an end"),
        ("a\tb", "holds U+0009 as character 2, a control character"),
        ("a\u202eb", "holds U+202E (RIGHT-TO-LEFT OVERRIDE) as character 2, which changes"),
    ],
)
def test_labels_that_are_hard_to_list(label: str, fault: str) -> None:
    """What would have to be quoted, or could be mistaken, is named with its place."""
    assert (fault_of_label(label) or "").startswith(fault)


def test_keys() -> None:
    """A key is text of any kind, but for what steers a terminal."""
    assert fault_of_key(" \u202e\u0301 '; -- \u200b") is None
    assert fault_of_key("a\r") == "holds U+000D as character 2, a control character"
