"""The example that quickstart runs."""

from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest

from penstock.examples.river_report import Reading, Unusable, clean, river_report, understand


def test_the_shipped_readings_become_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row is either kept or counted among those left out, and the report can be opened by itself."""
    result = river_report(str(tmp_path / "report"), pace=0)

    page = Path(result["report"]).read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert (
        result["rows_read"],
        result["rows_kept"],
        result["stations"],
        result["highest_level_m"],
    ) == (492, 472, 4, 5.56)
    assert page.count("<polyline") == 4
    assert page.count("<td>2024-0") == 16
    assert "http" not in page
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        (("2024-01-31", "Low Marsh", "1.25", "m"), 1.25),
        (("31.01.2024", " LOW marsh ", "125", "cm"), 1.25),
        (("2024-01-31", "low marsh", "1,25", "M"), 1.25),
        (("2024-01-31", "Low Marsh", "1250", "mm"), 1.25),
    ],
)
def test_one_reading_may_be_written_in_many_ways(fields: tuple[str, ...], level: float) -> None:
    """Units, decimal commas, spelling and two forms of date."""
    row = dict(zip(("date", "station", "level", "unit"), fields, strict=True))

    assert Reading("Low Marsh", date(2024, 1, 31), level) == understand(row)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (("2024-01-31", "Low Marsh", "-999", "m"), "no value"),
        (("2024-01-31", "Low Marsh", "1.2", "psi"), "unknown unit"),
        (("2024-13-31", "Low Marsh", "1.2", "m"), "not a number or not a date"),
    ],
)
def test_what_cannot_be_used_says_why(fields: tuple[str, ...], reason: str) -> None:
    """The reasons are counted in the report."""
    with pytest.raises(Unusable, match=reason):
        understand(dict(zip(("date", "station", "level", "unit"), fields, strict=True)))


def test_a_file_without_a_usable_row_fails_clearly() -> None:
    """No empty report is written."""
    with pytest.raises(ValueError, match="is this a file of river levels"):
        clean([{"date": "", "station": "", "level": "", "unit": ""}])
