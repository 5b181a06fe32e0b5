"""A flow with real work to do: it reads the raw readings of river gauges, cleans them, and writes a report in HTML.

The readings that ship with it are synthetic, and as dirty as those of real archives.
"""

import csv
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

from penstock import flow, get_logger

SHIPPED_READINGS: Final = Path(__file__).with_name("river_levels.csv")
METRES_PER_UNIT: Final[Mapping[str, float]] = {"m": 1.0, "cm": 0.01, "mm": 0.001}
NO_VALUES: Final = frozenset({"", "n/a", "err", "-999"})
# A level this many times the station's median is a fault of the gauge, not a flood.
IMPOSSIBLE_FACTOR: Final = 8.0
COLOURS: Final = ("#0b6e99", "#c1531f", "#3f7d3a", "#7a4fa3", "#8a6d1a", "#a3324f")


@dataclass(frozen=True, slots=True)
class Reading:
    """One clean reading: the level in metres."""

    station: str
    day: date
    level: float


@dataclass(frozen=True, slots=True)
class Month:
    """What a station's readings of one month come to."""

    station: str
    month: str
    days: int
    lowest: float
    mean: float
    highest: float


class Unusable(ValueError):
    """A row cannot be used. The text is why, in words that fit a table."""


@flow(retries=1, retry_delay=2)
def river_report(report: str = "penstock-report", readings: str | None = None, pace: float = 0.35) -> dict[str, Any]:
    """Clean the daily readings of river gauges and write a report with a chart and monthly figures.

    `report` is the directory to write to, `readings` a CSV file other than the one that ships with the example, and
    `pace` how many seconds to rest between steps, so that there is something to watch.
    """
    logger = get_logger()
    source = Path(readings) if readings else SHIPPED_READINGS

    logger.info("Reading %s", source.name)
    rows = list(read(source))
    logger.info("Read %d rows of %d stations", len(rows), len({station_name(row["station"]) for row in rows}))
    time.sleep(pace)

    kept, rejected = clean(rows)
    for reason, count in rejected.most_common():
        logger.warning("Left out %3d rows: %s", count, reason)
        time.sleep(pace)
    logger.info("Kept %d of %d rows", len(kept), len(rows))

    months = []
    for station, of_station in by_station(kept).items():
        months += monthly(of_station)
        top = max(of_station, key=lambda reading: reading.level)
        print(f"{station:<14} {len(of_station):>4} days, highest {top.level:.2f} m on {top.day}")
        time.sleep(pace)

    peak = max(kept, key=lambda reading: reading.level)
    logger.info("The highest level was %.2f m, at %s on %s", peak.level, peak.station, peak.day)
    file = Path(report).absolute() / "river-report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(kept, months, rejected, source.name), encoding="utf-8")
    logger.info("Wrote %s", file)
    return {
        "report": str(file),
        "rows_read": len(rows),
        "rows_kept": len(kept),
        "stations": len(by_station(kept)),
        "highest_level_m": round(peak.level, 2),
    }


def read(source: Path) -> Iterator[dict[str, str]]:
    """The rows of a file, without the comments above them."""
    with source.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader((line for line in file if not line.startswith("#")), delimiter=";")


def clean(rows: Iterable[Mapping[str, str]]) -> tuple[list[Reading], Counter[str]]:
    """The readings that can be used, by station and day, and why how many others cannot."""
    rejected: Counter[str] = Counter()
    usable: dict[tuple[str, date], Reading] = {}
    for row in rows:
        try:
            reading = understand(row)
            if (reading.station, reading.day) in usable:
                raise Unusable("repeats another row")
            usable[reading.station, reading.day] = reading
        except Unusable as why:
            rejected[str(why)] += 1
    kept = []
    for of_station in by_station(usable.values()).values():
        ceiling = IMPOSSIBLE_FACTOR * median(reading.level for reading in of_station)
        possible = [reading for reading in of_station if reading.level <= ceiling]
        rejected["impossible level"] += len(of_station) - len(possible)
        kept += possible
    if not kept:
        raise ValueError("no row can be used: is this a file of river levels?")
    return kept, +rejected


def understand(row: Mapping[str, str]) -> Reading:
    """One row as a reading; raises Unusable."""
    level = row["level"].strip().replace(",", ".")
    if level.lower() in NO_VALUES:
        raise Unusable("no value")
    unit = row["unit"].strip().lower()
    if unit not in METRES_PER_UNIT:
        raise Unusable("unknown unit")
    try:
        return Reading(station_name(row["station"]), day_of(row["date"]), float(level) * METRES_PER_UNIT[unit])
    except ValueError as error:
        raise Unusable("not a number or not a date") from error


def station_name(text: str) -> str:
    """A station's name, however it was typed."""
    return text.strip().title()


def day_of(text: str) -> date:
    """A day, as 2024-01-31 or 31.01.2024."""
    return datetime.strptime(text.strip(), "%d.%m.%Y" if "." in text else "%Y-%m-%d").date()


def by_station(readings: Iterable[Reading]) -> dict[str, list[Reading]]:
    """Readings by station, in the order of days."""
    ordered = sorted(readings, key=lambda reading: (reading.station, reading.day))
    return {station: list(group) for station, group in groupby(ordered, key=lambda reading: reading.station)}


def monthly(readings: Sequence[Reading]) -> list[Month]:
    """The months of one station's readings."""
    months = []
    for month, group in groupby(readings, key=lambda reading: f"{reading.day:%Y-%m}"):
        levels = [reading.level for reading in group]
        months.append(Month(readings[0].station, month, len(levels), min(levels), fmean(levels), max(levels)))
    return months


def page(readings: Sequence[Reading], months: Sequence[Month], rejected: Mapping[str, int], source: str) -> str:
    """The report: one file that needs nothing else."""
    figures = "".join(
        f"<tr><td>{escape(month.station)}<td>{month.month}<td>{month.days}"
        f"<td>{month.lowest:.2f}<td>{month.mean:.2f}<td>{month.highest:.2f}"
        for month in months
    )
    faults = "".join(f"<tr><td>{escape(reason)}<td>{count}" for reason, count in rejected.items())
    first, last = min(reading.day for reading in readings), max(reading.day for reading in readings)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>River levels</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2a33 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .2rem .9rem; border-bottom: 1px solid #d5dde2; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
svg {{ width: 100%; height: auto; font-size: 12px }}
</style>
<h1>River levels, {first} to {last}</h1>
<p>{len(readings)} daily readings of {len(by_station(readings))} stations, from {escape(source)}. Levels in metres.</p>
{chart(readings)}
<h2>By station and month</h2>
<table><tr><th>station<th>month<th>days<th>lowest<th>mean<th>highest{figures}</table>
<h2>Rows left out</h2>
<table><tr><th>reason<th>rows{faults}</table>
</html>
"""


def chart(readings: Sequence[Reading], width: int = 900, height: int = 320) -> str:
    """The levels of all stations over time, as an SVG image."""
    left, bottom = 40, height - 24
    first, last = min(reading.day for reading in readings), max(reading.day for reading in readings)
    days, top = max(1, (last - first).days), max(reading.level for reading in readings)

    def point(reading: Reading) -> str:
        x = left + (width - left - 10) * (reading.day - first).days / days
        return f"{x:.1f},{bottom - (bottom - 30) * reading.level / top:.1f}"

    parts = []
    for number, (station, of_station) in enumerate(by_station(readings).items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(map(point, of_station))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 10 + 150 * number}" y="14" fill="{colour}">{escape(station)}</text>')
    for level in range(int(top) + 1):
        y = bottom - (bottom - 30) * level / top
        parts.append(
            f'<path d="M{left} {y:.1f}H{width}" stroke="#d5dde2"/><text x="8" y="{y + 4:.1f}">{level} m</text>'
        )
    parts.append(f'<text x="{left}" y="{height - 6}">{first}</text>')
    parts.append(f'<text x="{width}" y="{height - 6}" text-anchor="end">{last}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Levels over time">{"".join(parts)}</svg>'
