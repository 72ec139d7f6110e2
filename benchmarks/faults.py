"""What faults of an object store cost: both engines against a server that fails as it is told to.

The server is `headrace.testing.ObjectServer` in a process of its own, 20 ms before each answer::

    python benchmarks/faults.py --out docs/benchmarks

Sections, for each engine in lite and in standard:

* *faults*: 10,000 ranges of 4 KiB in one call; a tenth of the requests fails in one way, or in all ways.
* *storm*: calls of 500 ranges, four under way; for a second and a half every request is answered with 503.
  The rate is what the server served well, so it is not the client's word.
* *stragglers*: one request in a hundred takes two seconds longer. 10,000 ranges one by one from 8 threads,
  and in one call, with and without second requests; with them three times, as ten slow reads decide.
  Percentiles are medians of the runs.

Every byte is compared with the object's. Promised are: each range right and none an error, at most 1.2
requests a range with a tenth of faults; 90% of the rate before within 2 s after a storm; and with hedging a
p99.9 under 200 ms for at most 3% more requests. What was missed is in bold. With ``--out`` what is not
run this time stays as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any

import numpy as np
from _bench import KIB, MIB, console, parse_sections, parser, prepare, save, seconds_text
from rich.progress import track
from rich.table import Table

from headrace import HeadraceFileSystem
from headrace.testing import Faults, ObjectServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

BUCKET, KEY = "bench", "random.bin"
PATH = f"{BUCKET}/{KEY}"
OBJECT_BYTES = 128 * MIB
BLOCK = 4 * KIB
LATENCY_S = 0.02
GETS = frozenset({"GET"})
ENGINES = ("obstore", "fsspec")
MODES = ("standard", "lite")
KINDS = ("slow_down", "too_many_requests", "internal_error", "reset", "break_body", "truncate")
SHOWN_KINDS = ("none", "slow_down", "reset", "truncate", "all")
SHARE = 0.1
CALL = 500
CALLS_UNDER_WAY = 4
THREADS = 8
STRAGGLERS = {"straggler_share": 0.01, "straggler_s": 2.0}
WAIT_S = 300.0

MOST_REQUESTS = 1.2
RECOVERY_S = 2.0
FULL_SHARE = 0.9
HEDGED_P999_S = 0.2
HEDGED_REQUESTS = 1.03


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    ranges: int
    hedged_runs: int = 3
    before_s: float = 3.0
    storm_s: float = 1.5
    after_s: float = 4.0


FULL = Sizes(10_000)
QUICK = Sizes(400, hedged_runs=1, before_s=1.0, storm_s=0.5, after_s=2.5)


class Store:
    """The server, the object's bytes, and a fresh filesystem for each trial."""

    def __init__(self, server: ObjectServerProcess) -> None:
        self.server = server
        self.data = np.random.default_rng(1).bytes(OBJECT_BYTES)
        server.put(BUCKET, KEY, self.data)
        self._rng = np.random.default_rng(2)

    def filesystem(self, engine: str, mode: str, **options: Any) -> HeadraceFileSystem:
        """Return one that has read a range, so that clients are made; with a window of its own."""
        self.server.set_faults(Faults(latency_s=LATENCY_S))
        # Another identity is another store: nothing was learnt of it yet.
        target = self.server.storage_options(f"key-{self._rng.integers(1 << 60)}")
        fs = HeadraceFileSystem(
            target_protocol="s3",
            target_options={**target, "skip_instance_cache": True},
            scheduler=mode,
            cloud_engine=engine,
            max_gap_bytes=0,
            skip_instance_cache=True,
            **options,
        )
        fs.cat_file(PATH, start=0, end=1)
        self.server.forget()
        return fs

    def starts(self, n: int) -> np.ndarray:
        """Return `n` blocks in random order, none twice, and none that touch: those would be one request."""
        return self._rng.choice(OBJECT_BYTES // BLOCK // 2, n, replace=False) * 2 * BLOCK

    def wrong(self, starts: Sequence[int], batch: Any) -> int:
        """Count the ranges that hold other bytes than the object does."""
        rows = [row for row in range(len(starts)) if row not in batch.errors]
        return sum(bytes(batch[row]) != self.data[starts[row] : starts[row] + BLOCK] for row in rows)


# -- faults


@dataclass(slots=True)
class Failing:
    """What one call made of a tenth of faults."""

    kind: str
    engine: str
    mode: str
    ranges: int
    seconds: float
    requests: int
    wrong: int
    errors: int
    error: str

    @property
    def is_kept(self) -> bool:
        """Whether all bytes are there and right, and the requests few."""
        return not self.wrong and not self.errors and self.requests <= MOST_REQUESTS * self.ranges


def failing(store: Store, kind: str, engine: str, mode: str, sizes: Sizes) -> Failing:
    """Read in one call while requests fail."""
    fs = store.filesystem(engine, mode)
    kinds = KINDS if kind == "all" else [kind]
    shares = {f"{name}_share": SHARE / len(kinds) for name in kinds if kind != "none"}
    store.server.set_faults(Faults(latency_s=LATENCY_S, methods=GETS, **shares))
    starts = store.starts(sizes.ranges)
    began = perf_counter()
    batch = fs.read_ranges(PATH, starts, starts + BLOCK)
    seconds = perf_counter() - began
    requests = store.server.counts.request_count
    error = next((f"{type(one).__name__}: {one}" for one in batch.errors.values()), "")
    wrong = store.wrong(starts.tolist(), batch)
    return Failing(kind, engine, mode, len(starts), seconds, requests, wrong, len(batch.errors), error)


def show_failing(found: Sequence[Failing]) -> None:
    """Print what each kind cost."""
    columns = ("a tenth of", "engine", "mode", "time", "ranges/s", "requests a range", "wrong", "errors")
    table = Table(*columns, title="faults")
    for one in found:
        ratio = f"{one.requests / one.ranges:.3f}"
        cells = (
            one.kind,
            one.engine,
            one.mode,
            seconds_text(one.seconds),
            f"{one.ranges / one.seconds:,.0f}",
        )
        table.add_row(*cells, bold(ratio, one.is_kept), str(one.wrong), f"{one.errors} {one.error[:60]}")
    console.print(table)


# -- a storm of 503s


@dataclass(slots=True)
class Storm:
    """What a storm did to a read; times count from its end.

    Attributes
    ----------
    recovered_s
        When the rate over half a second was first 90% of that before; None: never.
    rates
        Answers a second, by tenths of a second, from the beginning of the read.
    """

    engine: str
    mode: str
    ranges: int
    requests: int
    storm_requests: int
    wrong: int
    errors: int
    error: str
    began_s: float
    ended_s: float
    rate_before: float
    rate_after: float
    recovered_s: float | None
    rates: list[float]

    @property
    def is_kept(self) -> bool:
        """Whether nothing failed and it was back soon enough."""
        is_soon = self.recovered_s is not None and self.recovered_s <= RECOVERY_S
        return not self.wrong and not self.errors and is_soon


class Reading(threading.Thread):
    """Reads calls of ranges, some of them under way at once, until it is told to end."""

    def __init__(self, store: Store, fs: HeadraceFileSystem) -> None:
        super().__init__(daemon=True)
        self.store, self.fs = store, fs
        self.is_enough = threading.Event()
        self.done: list[tuple[list[int], Any]] = []

    def run(self) -> None:
        """Read."""
        under_way: deque[tuple[np.ndarray, Any]] = deque()
        while under_way or not self.is_enough.is_set():
            while len(under_way) < CALLS_UNDER_WAY and not self.is_enough.is_set():
                starts = self.store.starts(CALL)
                under_way.append((starts, self.fs.submit_ranges(PATH, starts, starts + BLOCK)))
            starts, read = under_way.popleft()
            self.done.append((starts.tolist(), read.result(WAIT_S)))


def storm(store: Store, engine: str, mode: str, sizes: Sizes) -> Storm:
    """Read on while the store refuses everything for a while."""
    fs = store.filesystem(engine, mode)
    reading = Reading(store, fs)
    first_s = monotonic()
    reading.start()
    sleep(sizes.before_s)
    store.server.set_faults(Faults(latency_s=LATENCY_S, is_storm=True))
    began_s = monotonic()
    sleep(sizes.storm_s)
    store.server.set_faults(Faults(latency_s=LATENCY_S))
    ended_s = monotonic()
    sleep(sizes.after_s)
    reading.is_enough.set()
    last_s = monotonic()
    reading.join()
    served = store.server.requests
    well = np.array(sorted(one.ended_s for one in served if one.status == 206 and one.ended_s is not None))
    before = rate_between(well, (first_s + began_s) / 2, began_s)
    errors = [error for _, batch in reading.done for error in batch.errors.values()]
    return Storm(
        engine,
        mode,
        sum(len(starts) for starts, _ in reading.done),
        len(served),
        sum(began_s <= one.began_s < ended_s for one in served),
        sum(store.wrong(starts, batch) for starts, batch in reading.done),
        len(errors),
        next((f"{type(one).__name__}: {one}" for one in errors), ""),
        began_s - first_s,
        ended_s - first_s,
        before,
        rate_between(well, ended_s + RECOVERY_S, last_s),
        recovery_s(well, ended_s, last_s, FULL_SHARE * before),
        [rate_between(well, at, at + 0.1) for at in np.arange(first_s, last_s, 0.1)],
    )


def rate_between(ended_s: np.ndarray, begin_s: float, end_s: float) -> float:
    """Return answers a second between two times; `ended_s` is sorted."""
    lo, hi = np.searchsorted(ended_s, (begin_s, end_s))
    return float(hi - lo) / (end_s - begin_s)


def recovery_s(well: np.ndarray, ended_s: float, last_s: float, enough: float) -> float | None:
    """Return after how long half a second begins that has `enough` answers a second."""
    for at_s in np.arange(ended_s, last_s - 0.5, 0.05):
        if rate_between(well, at_s, at_s + 0.5) >= enough:
            return float(at_s - ended_s)
    return None


def show_storms(found: Sequence[Storm]) -> None:
    """Print how soon the rate was back."""
    columns = ("engine", "mode", "before", "after 2 s", "90% after", "requests in it", "ranges", "errors")
    table = Table(*columns, title="a storm of 503s")
    for one in found:
        after = "never" if one.recovered_s is None else seconds_text(max(one.recovered_s, 1e-3))
        table.add_row(
            one.engine,
            one.mode,
            f"{one.rate_before:,.0f}/s",
            f"{one.rate_after:,.0f}/s",
            bold(after, one.is_kept),
            f"{one.storm_requests:,}",
            f"{one.ranges:,}, {one.wrong} wrong",
            f"{one.errors} {one.error[:60]}",
        )
    console.print(table)


# -- stragglers


@dataclass(slots=True)
class Straggling:
    """What stragglers did to 10,000 reads, some times over; percentiles where they were made one by one.

    Attributes
    ----------
    ranges, requests, seconds, wrong
        Of all runs.
    p999_each_s
        Of each run.
    """

    engine: str
    mode: str
    how: str
    is_hedged: bool
    ranges: int
    requests: int
    seconds: float
    p50_s: float | None
    p99_s: float | None
    p999_s: float | None
    p999_each_s: list[float]
    wrong: int

    @property
    def is_kept(self) -> bool:
        """Whether hedging does what it should; without it nothing was promised."""
        is_quick = self.p999_s is None or self.p999_s <= HEDGED_P999_S
        is_cheap = self.requests <= HEDGED_REQUESTS * self.ranges
        return not self.wrong and (not self.is_hedged or (is_quick and is_cheap))


def straggling(store: Store, engine: str, mode: str, *, is_hedged: bool, sizes: Sizes) -> list[Straggling]:
    """Read one by one, and in one call."""
    found = []
    for how, read in (("one by one", one_by_one), ("one call", one_call)):
        requests, seconds, wrong = 0, 0.0, 0
        percentiles = []
        runs = sizes.hedged_runs if is_hedged else 1
        for _ in range(runs):
            fs = store.filesystem(engine, mode, hedge=float(is_hedged and 0.03))
            store.server.set_faults(Faults(latency_s=LATENCY_S, methods=GETS, **STRAGGLERS))
            starts = store.starts(sizes.ranges).tolist()
            began = perf_counter()
            run_wrong, each_s = read(store, fs, starts)
            seconds += perf_counter() - began
            requests += store.server.counts.request_count
            wrong += run_wrong
            if each_s:
                percentiles.append(np.percentile(each_s, (50, 99, 99.9)))
        middle = np.median(percentiles, axis=0).tolist() if percentiles else [None] * 3
        each = [float(run[-1]) for run in percentiles]
        case = (engine, mode, how, is_hedged, runs * sizes.ranges, requests, seconds)
        found.append(Straggling(*case, *middle, each, wrong))
    return found


def one_by_one(store: Store, fs: HeadraceFileSystem, starts: list[int]) -> tuple[int, list[float]]:
    """Read with some threads, a range at a time; returns the wrong ones and the seconds of each."""

    def read(start: int) -> tuple[bool, float]:
        began = perf_counter()
        data = fs.cat_file(PATH, start=start, end=start + BLOCK)
        took = perf_counter() - began
        return data != store.data[start : start + BLOCK], took

    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(read, starts))
    return sum(is_wrong for is_wrong, _ in found), [took for _, took in found]


def one_call(store: Store, fs: HeadraceFileSystem, starts: list[int]) -> tuple[int, list[float]]:
    """Read all at once."""
    batch = fs.read_ranges(PATH, starts, [start + BLOCK for start in starts])
    return store.wrong(starts, batch) + len(batch.errors), []


def show_straggling(found: Sequence[Straggling]) -> None:
    """Print the percentiles."""
    columns = (
        "engine",
        "mode",
        "reads",
        "hedged",
        "ranges/s",
        "p50",
        "p99",
        "p99.9",
        "requests a range",
        "wrong",
    )
    table = Table(*columns, title="one straggler of 2 s in a hundred")
    for one in found:
        times = ("" if one_s is None else seconds_text(one_s) for one_s in (one.p50_s, one.p99_s, one.p999_s))
        table.add_row(
            one.engine,
            one.mode,
            one.how,
            "yes" if one.is_hedged else "no",
            f"{one.ranges / one.seconds:,.0f}/s",
            *(bold(text, one.is_kept) for text in times),
            bold(f"{one.requests / one.ranges:.3f}", one.is_kept),
            str(one.wrong),
        )
    console.print(table)


# -- the run


def bold(text: str, is_kept: bool) -> str:
    """Return what the table shows."""
    return text if is_kept or not text else f"[bold red]{text}[/]"


def draw(storms: Sequence[Storm], found: Sequence[Straggling]) -> Any:
    """Draw the rate around the storm, and the percentiles."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - for the picture only

    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for one in storms:
        times = np.arange(len(one.rates)) * 0.1 - one.ended_s
        style = "-" if one.mode == "standard" else ":"
        left.plot(times, one.rates, style, label=f"{one.engine}, {one.mode}")
        left.axvspan(one.began_s - one.ended_s, 0, color="#d1495b", alpha=0.05)
    left.set(xlabel="seconds since the end of the storm", ylabel="ranges served a second")
    if storms:
        left.legend(fontsize=8)
    singles = [one for one in found if one.p999_s is not None]
    names = [f"{one.engine}, {one.mode}{', hedged' if one.is_hedged else ''}" for one in singles]
    for name, colour in (("p50_s", "#8d99ae"), ("p99_s", "#edae49"), ("p999_s", "#d1495b")):
        values = [1e3 * getattr(one, name) for one in singles]
        right.plot(values, names, "o", color=colour, label=name.removesuffix("_s").replace("999", "99.9"))
    right.set_xscale("log")
    right.set_xlabel("a read, ms, with 1% of stragglers of 2 s")
    if singles:
        right.legend(fontsize=8)
    return figure


def run(given: Any, sizes: Sizes) -> dict[str, list[Any]]:
    """Run the sections asked for."""
    ways = [(engine, mode) for engine in given.engines for mode in given.modes]
    trials: dict[str, list[Callable[[Store], Any]]] = {
        "faults": [
            lambda store, way=way, kind=kind: [failing(store, kind, *way, sizes)]
            for kind in SHOWN_KINDS
            for way in ways
        ],
        "storm": [lambda store, way=way: [storm(store, *way, sizes)] for way in ways],
        "stragglers": [
            lambda store, way=way, is_hedged=is_hedged: straggling(
                store, *way, is_hedged=is_hedged, sizes=sizes
            )
            for way in ways
            for is_hedged in (False, True)
        ],
    }
    found: dict[str, list[Any]] = {name: [] for name in trials}
    with ObjectServerProcess() as server:
        store = Store(server)
        chosen = [(name, trial) for name in given.sections for trial in trials[name]]
        for name, trial in track(chosen, "running", console=console, transient=True):
            found[name] += trial(store)
    return found


def kept(out: Path | None) -> dict[str, list[Any]]:
    """Return what earlier runs wrote there: what is not run now stays in the report."""
    made = {"faults": Failing, "storm": Storm, "stragglers": Straggling}
    found: dict[str, list[Any]] = {name: [] for name in made}
    with contextlib.suppress(FileNotFoundError):
        before = json.loads((out / "faults.json").read_text()) if out is not None else {}
        for name, kind in made.items():
            names = {field.name for field in fields(kind)}
            rows = before.get(name, [])
            found[name] = [kind(**{key: row[key] for key in names}) for row in rows]
    return found


def main() -> None:
    """Run what is asked for and report."""
    options = parser(__doc__ or "")
    options.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    options.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    given = parse_sections(options, ("faults", "storm", "stragglers"))
    prepare()
    sizes = QUICK if given.quick else FULL
    found = run(given, sizes)
    for name, rows in kept(given.out).items():
        again = {(row.engine, row.mode) for row in found[name]}
        found[name] = [row for row in rows if (row.engine, row.mode) not in again] + found[name]
    shown = {"faults": show_failing, "storm": show_storms, "stragglers": show_straggling}
    for name in given.sections:
        shown[name](found[name])
    facts = {
        "latency_s": LATENCY_S,
        "sizes": asdict(sizes),
        **{name: [{**asdict(one), "is_kept": one.is_kept} for one in rows] for name, rows in found.items()},
    }
    save(given.out, "faults", facts, draw(found["storm"], found["stragglers"]))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
