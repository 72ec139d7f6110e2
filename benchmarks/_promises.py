"""What the project promises of a run's figures: ratios of rates, wanted and seen.

Every ratio that is promised is made here, kept or missed alike; what the project makes no promise about may
stand beside, without a bound. Ours is one contender; a peer is the best of those that have its name, alone or
before a comma ("s3fs" is the better of "s3fs, 64 connections" and "s3fs, 128 connections").
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from _bench import Result, by_case, console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Promise:
    """A ratio of rates within the run, and what the project says it should be at least, if it does.

    Attributes
    ----------
    what, case
        Whose rates, and of which case.
    least, seen
        The promise, None where there is none, and what came of it.
    """

    what: str
    case: str
    least: float | None
    seen: float

    @property
    def is_kept(self) -> bool:
        """Whether it is at least what was promised."""
        return self.least is None or self.seen >= self.least


class Rates:
    """The rates of one case."""

    def __init__(self, rows: Sequence[Result]) -> None:
        self.section, self.name, self.state = rows[0].section, rows[0].case, rows[0].state
        self._rates = {row.contender: row.rate for row in rows}

    def __str__(self) -> str:
        return f"{self.section}: {self.name}, {self.state}"

    @property
    def contenders(self) -> list[str]:
        """The names of all of them."""
        return list(self._rates)

    def one(self, contender: str) -> float | None:
        """Return the rate of one contender."""
        return self._rates.get(contender)

    def against(self, ours: str, peer: str, least: float | None = None) -> Iterator[Promise]:
        """Compare one of ours with a peer at its best, if both are in this run."""
        found = [rate for name, rate in self._rates.items() if peer in {name, name.partition(",")[0]}]
        at_best = " at its best" if len(found) > 1 else ""
        what = f"{ours} / {peer}{at_best}"
        yield from ratio(what, str(self), least, self.one(ours), max(found, default=None))

    def against_one(self, ours: str, other: str, least: float | None = None) -> Iterator[Promise]:
        """Compare with one contender, whether there is a better one of that name or not."""
        yield from ratio(f"{ours} / {other}", str(self), least, self.one(ours), self.one(other))


def ratio(
    what: str, case: str, least: float | None, rate: float | None, other: float | None
) -> Iterator[Promise]:
    """Compare two rates, if both are in this run."""
    if rate is not None and other is not None:
        yield Promise(what, case, least, rate / other)


def cases_of(results: Sequence[Result], *sections: str) -> list[Rates]:
    """Return the cases of some sections, in their order."""
    return [Rates(rows) for rows in by_case(results) if rows[0].section in sections]


def show_promises(found: Sequence[Promise]) -> None:
    """Print what was promised and what was seen; what is missed is in bold."""
    table = Table("case", "ratio of rates within this run", "promised", "seen")
    shown = ""
    for one in found:
        if one.case != shown:
            table.add_section()
        seen = f"{one.seen:.3g}" if one.is_kept else f"[bold red]{one.seen:.3g}, missed[/]"
        promised = "" if one.least is None else f">= {one.least:.3g}"
        table.add_row("" if one.case == shown else one.case, one.what, promised, seen)
        shown = one.case
    console.print(table)
    missed = sum(not one.is_kept for one in found)
    console.print(f"promises missed: {missed} of {sum(one.least is not None for one in found)}")


def promises_as_json(found: Sequence[Promise]) -> list[dict[str, Any]]:
    """Return plain types."""
    return [{**asdict(one), "is_kept": one.is_kept} for one in found]
