"""Keeps the latest figures in this directory's README.md."""

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.bench.rows import Row, table

README: Final = Path(__file__).with_name("README.md")


def write(kind: str, rows: Sequence[Row]) -> None:
    """Put these rows in the place of those that were taken on that kind of database before."""
    section = f"<!-- {kind} -->\n{_words(kind)}\n\n{table(rows)}\n<!-- end of {kind} -->"
    present = re.compile(f"<!-- {kind} -->.*<!-- end of {kind} -->", re.DOTALL)
    README.write_text(present.sub(lambda _: section, README.read_text()))


def _words(kind: str) -> str:
    today = datetime.now(UTC).date().isoformat()
    load = os.getloadavg()[0]
    python = f"Python {platform.python_version()}"
    return f"{kind}, {today}: {_processor()}, {os.cpu_count()} processors, load {load:.1f} at the end, {python}."


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", information.read_text()) if information.exists() else None
    return found.group(1) if found else platform.machine()
