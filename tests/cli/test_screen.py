"""What is printed for people."""

import re

import pytest

from penstock.cli.screen import Screen


@pytest.mark.parametrize("columns", [None, "", "0", "wide", "²"])
def test_a_pipe_gets_whole_lines_without_colour(
    columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in a pipe is coloured, wrapped or cut, and nothing is taken for markup; a senseless COLUMNS is none."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    long = "x" * 500

    Screen().line(("[bold]warned[/bold] ", "bold red"), long)
    Screen().table(("NAME", "TEXT"), [("a", long), ("\x1b[2Jb", "RUNNING")])

    first, heading, row, other = capsys.readouterr().out.splitlines()
    assert f"[bold]warned[/bold] {long}" == first
    assert ["NAME", "TEXT"] == heading.split()
    assert ["a", long] == row.split()
    assert [r"\x1b[2Jb", "RUNNING"] == other.split()


def test_columns_narrow_a_table_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Who sets COLUMNS gets tables of that width, folded and whole, and lines of text as long as they are."""
    monkeypatch.setenv("COLUMNS", "30")

    Screen().table(("NAME", "TEXT"), [("0123456789abcdefghij", "ABCDEFGHIJKLMNOPQRST")])
    Screen().line("x" * 50)

    *table, line = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) <= 30
    assert table[1].startswith("0123456789abcdefghij ")
    assert set("ABCDEFGHIJKLMNOPQRST") <= set("".join(table[1:]))
    assert "x" * 50 == line


def test_a_narrow_terminal_loses_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a narrow terminal cells are folded, not cut, and what stands first stays in one piece."""
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")

    Screen().table(("NAME", "TEXT"), [("0123456789abcdefghij", "ABCDEFGHIJKLMNOPQRST")])

    out = capsys.readouterr().out
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert max(map(len, lines)) <= 30
    assert lines[1].startswith("0123456789abcdefghij ")
    assert set("ABCDEFGHIJKLMNOPQRST") <= set("".join(lines[1:]))
