"""The help of commands with many options."""

import re

from typer.testing import CliRunner

from penstock.cli.main import app


def test_the_help_groups_every_option_once() -> None:
    """Every option stands under the heading it belongs to, and no heading is a leftover."""
    shown = CliRunner().invoke(app, ["run", "--help"]).stdout

    headings = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, re.MULTILINE)
    assert ["What to run", "What the run is given"] == headings[:2]
    assert "Options" not in headings
    assert len(options) == len(set(options))
    assert {"--id", "--param", "--start-at", "--label", "--env", "--watch", "--json", "--batch", "--help"} <= {*options}
    assert shown.index("\nWhen it starts:") < shown.index("  --start-at") < shown.index("\nHow it is treated:")
