"""`penstock agent`."""

from pathlib import Path

import pytest

from tests.cli.command import penstock


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--slots", "0"], "PENSTOCK_SLOTS (or --slots) must be from 1"), (["--name", "x" * 256], "PENSTOCK_NAME")],
)
async def test_what_an_agent_cannot_be_is_misuse(options: list[str], words: str, tmp_path: Path) -> None:
    """Options that no agent can have are refused before it connects, with exit code 2."""
    refused = await penstock("agent", "start", *options, PENSTOCK_DATA_DIR=str(tmp_path))

    assert (2, "") == (refused.code, refused.out)
    assert words in refused.err
