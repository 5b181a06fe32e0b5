"""`python -m tests.bench`: measure, print a row for each figure, and exit with 1 if one that gates does not hold."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.bench import cancel_to_stop, readme
from tests.bench.place import Place, Unmeasurable, kind_of, prepared
from tests.bench.rows import Row, table

MEASUREMENTS: Final[Mapping[str, Callable[[Place], Awaitable[Sequence[Row]]]]] = {
    "cancel-to-stop": cancel_to_stop.measure,
}


def main() -> int:
    """Measure what is asked for."""
    asked = _parser().parse_args()
    try:
        rows = asyncio.run(_measure(asked.only or list(MEASUREMENTS), asked.database, quick=asked.quick))
    except Unmeasurable as reason:
        print(reason, file=sys.stderr)
        return 2
    print(table(rows))
    if asked.json:
        asked.json.write_text(json.dumps({"rows": [row.document() for row in rows]}, indent=2) + "\n")
    if not asked.quick and not asked.only:
        readme.write(kind_of(asked.database), rows)
    return 0 if all(row.holds for row in rows if row.gates) else 1


async def _measure(names: Sequence[str], database: str, *, quick: bool) -> list[Row]:
    rows: list[Row] = []
    for name in names:
        # Each in a place of its own, so that none measures what another has left behind.
        with prepared(database, quick=quick) as place:
            rows += await MEASUREMENTS[name](place)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.bench", description="Measure beside a reference of the same run.")
    parser.add_argument("--quick", action="store_true", help="every row in small form; README.md stays as it is")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MEASUREMENTS, help=", ".join(MEASUREMENTS))
    parser.add_argument("--database", default="", metavar="URL", help="a PostgreSQL server; SQLite if not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows for programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
