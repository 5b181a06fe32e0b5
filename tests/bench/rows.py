"""What a measurement finds, and how it is shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: the median of several repetitions, with the lowest and the highest of them.

    A row whose figure is a time says beside what reference it was taken, and never decides whether the bench succeeds.
    """

    name: str
    figure: float
    low: float
    high: float
    goal: str
    holds: bool
    unit: str = ""
    reference: str = ""
    reference_figure: float = 0.0

    @property
    def gates(self) -> bool:
        return not self.unit

    @property
    def ratio(self) -> float:
        """How many times the reference the figure is; 0 where there is none."""
        return self.figure / self.reference_figure if self.reference_figure else 0.0

    def document(self) -> dict[str, Any]:
        """The row for programs."""
        told = {name: getattr(self, name) for name in ("name", "figure", "goal", "holds", "low", "high")}
        beside = {name: getattr(self, name) for name in ("unit", "reference", "reference_figure", "ratio")}
        return told | (beside if self.unit else {})

    def cells(self) -> tuple[str, ...]:
        """The row for people, under `HEADINGS`."""
        unit = f" {self.unit}" if self.unit else ""
        beside = f"{self.reference} {self.reference_figure:.2f}{unit}, {self.ratio:.1f}×" if self.reference else ""
        spread = f"{self.low:.2f}–{self.high:.2f}"
        return self.name, self.goal, f"{self.figure:.2f}{unit}", spread, beside, "yes" if self.holds else "no"


HEADINGS = ("row", "goal", "figure", "spread", "beside", "holds")


def time_row(
    name: str, seconds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], *, part: float, limit: float
) -> Row:
    """A part of all times, in ms, beside the same part of a reference's; the spread is that of the repetitions."""
    figure = 1_000 * quantile([each for some in seconds for each in some], part)
    repetitions = [1_000 * quantile(some, part) for some in seconds]
    return Row(
        name=name,
        figure=figure,
        low=min(repetitions),
        high=max(repetitions),
        goal=f"≤ {1_000 * limit:g} ms",
        holds=figure <= 1_000 * limit,
        unit="ms",
        reference="echo",
        reference_figure=1_000 * quantile([each for some in reference for each in some], part),
    )


def quantile(values: Sequence[float], part: float) -> float:
    """The value that this part of all values does not exceed; the median is that of statistics."""
    if part == 0.5:
        return median(values)
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def table(rows: Sequence[Row]) -> str:
    """The rows as a table of Markdown, which people can read as it is."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    padded = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])
