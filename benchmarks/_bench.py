"""What the benchmarks share: alternating runs, cold caches, data, a table, a PNG and a JSON file.

How a comparison is made:

1. Every *round* makes fresh input (offsets), and every contender of the case gets the same one.
2. The contenders take turns, in an order that is drawn for every two rounds of a run: once forwards, once
   backwards. So a slow minute of the machine does not always fall on the same one, nor what is left
   behind by the same one before it.
3. Cold cases empty the page cache before each contender of each round; hot ones lock the files into
   memory before the first, or read them once where they may not.
4. In a round that is not counted each contender's answer is compared with the file's own bytes.
5. Beside busy threads each contender begins with Python's own switch interval.
6. Reported is the median over the rounds, with the fastest and the slowest beside it.

No figure is compared with anything that is written down here: only with its neighbours of the run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
PACKAGES = ("headrace", "fsspec", "pyarrow", "obstore", "numpy")
FILES = 4
SWITCH_INTERVAL_S = sys.getswitchinterval()
PERCENTILES = (50, 90, 99, 100)

console = Console(width=130)


@dataclass(slots=True)
class Contender:
    """One way to do the work.

    Attributes
    ----------
    name
        As the table shows it.
    run
        Does the work on the round's input; what it returns is compared, untimed, with the truth.
    close
        Called after the case.
    share
        Part of the case's amount that it does: a slow one may do less for its rate.
    """

    name: str
    run: Callable[[Any], Any]
    close: Callable[[], object] = lambda: None
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Took:
    """The answer of a contender that measures by itself.

    Attributes
    ----------
    seconds
        What the run took: for one that reads in a process of its own.
    each_s
        Seconds of each read, where there is more than one to measure.
    answer
        What it read, or None where that was not here.
    """

    seconds: float
    each_s: Sequence[float] = ()
    answer: Any = None


@dataclass(slots=True)
class Case:
    """Work that several contenders do.

    Attributes
    ----------
    section, name, state
        Where the table shows it; `state` is "hot" or "cold".
    make_input
        Makes a round's input from a random generator.
    amount, unit
        What one run does, for the rate: operations, bytes, rows.
    files
        To be made hot or cold.
    truth
        What every contender must answer, or None where nothing is compared.
    around
        What goes on beside all of it, such as busy threads.
    starts_threads
        Whether contenders start busy threads by themselves, as part of what is timed.
    """

    section: str
    name: str
    state: str
    make_input: Callable[[np.random.Generator], Any]
    contenders: Sequence[Contender]
    amount: float
    unit: str
    files: Sequence[Path]
    truth: Callable[[Any], Any] | None = None
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    starts_threads: bool = False


@dataclass(slots=True)
class Result:
    """What one contender of a case needed, by run; `each_s` by read, where that was measured."""

    section: str
    case: str
    state: str
    contender: str
    unit: str
    amount: float
    seconds: list[float] = field(default_factory=list)
    each_s: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median seconds of a run."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Units a second, in the median run."""
        return self.amount / self.median_s

    def percentile_s(self, percent: float) -> float:
        """Seconds that so many percent of the single reads took at most, over all rounds."""
        return float(np.percentile(self.each_s, percent))


# -- the page cache


def make_cold(files: Sequence[Path]) -> str:
    """Drop `files` from the page cache, and the whole cache where we may; returns how."""
    for file in files:
        with file.open("rb") as opened:
            os.fdatasync(opened.fileno())  # dirty pages cannot be dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(OSError):
        DROP_CACHES.write_text("3")
        return "/proc/sys/vm/drop_caches and posix_fadvise(DONTNEED)"
    return "posix_fadvise(DONTNEED)"


@contextlib.contextmanager
def kept_hot(files: Sequence[Path]) -> Iterator[None]:
    """Have the page cache hold all of `files`: some kernels page out what was not used for a minute."""
    piece = bytearray(8 * MIB)
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.ExitStack() as stack:
        for file in files:
            opened = stack.enter_context(file.open("rb", buffering=0))
            while opened.readinto(piece):
                pass
            mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)  # locked until it goes
            first = np.frombuffer(mapped, np.uint8, 1).ctypes.data
            if libc.mlock(ctypes.c_void_p(first), ctypes.c_size_t(len(mapped))):
                console.print(f"{file.name} is not locked into memory: {os.strerror(ctypes.get_errno())}")
            stack.enter_context(contextlib.closing(mapped))
        yield


# -- running


def run_case(case: Case, rounds: int, seed: int) -> list[Result]:
    """Run one case; the results are in the order of its contenders."""
    results = [
        Result(case.section, case.name, case.state, one.name, case.unit, case.amount * one.share)
        for one in case.contenders
    ]
    if len(results) == 2:
        rounds += rounds % 2  # each goes first as often as the other: that made 6% between equals
    with kept_hot(case.files if case.state == "hot" else []), case.around():
        _check(case, np.random.default_rng([seed, 0]))
        for number, order in zip(range(1, rounds + 1), _orders(len(results)), strict=False):
            given = case.make_input(np.random.default_rng([seed, number]))
            for k in order:
                took = _timed(case, case.contenders[k], given)
                results[k].seconds.append(took.seconds)
                results[k].each_s += took.each_s
    for one in case.contenders:
        one.close()
    return results


def _orders(contenders: int) -> Iterator[list[int]]:
    """Draw who goes after whom; where that is always the same, it is a part of the figures."""
    rng = np.random.default_rng()
    while True:
        drawn = rng.permutation(contenders).tolist()
        yield drawn
        yield drawn[::-1]


def _timed(case: Case, contender: Contender, given: Any) -> Took:
    if case.state == "cold":
        make_cold(case.files)
    if case.starts_threads or case.around is not contextlib.nullcontext:
        wait_for_long_turns()
    gc.collect()
    began = perf_counter()
    answer = contender.run(given)
    took = perf_counter() - began
    return answer if isinstance(answer, Took) else Took(took)


def wait_for_long_turns() -> None:
    """Wait until busy threads have turns of the usual length: headrace shortens them, for its peers too."""
    for _ in range(600):
        if sys.getswitchinterval() == SWITCH_INTERVAL_S:
            return
        sleep(0.05)
    msg = "the switch interval was not given back within half a minute"
    raise AssertionError(msg)


def _check(case: Case, rng: np.random.Generator) -> None:
    """Compare every contender's answer with the truth; a wrong one is worth nothing."""
    given = case.make_input(rng)
    expected = case.truth(given) if case.truth is not None else None
    for contender in case.contenders:
        answer = contender.run(given)
        if isinstance(answer, Took):
            answer = answer.answer
        if answer is None or expected is None:
            continue
        if not same(answer, _part(expected, contender.share)):
            msg = f"{case.section} / {case.name}: {contender.name} read other bytes"
            raise AssertionError(msg)


def _part(expected: Any, share: float) -> Any:
    """Return what a contender with a share answers: the first of the list."""
    return expected[: round(len(expected) * share)] if isinstance(expected, list) else expected


def same(answer: Any, expected: Any) -> bool:
    """Whether two answers hold the same bytes, whatever they are wrapped in."""
    if isinstance(expected, list):
        return len(answer) == len(expected) and all(
            memoryview(a) == memoryview(b) for a, b in zip(answer, expected, strict=True)
        )
    return bool(answer == expected)


def run_all(cases: Sequence[Case], rounds: int) -> list[Result]:
    """Run the cases one after another, with a progress bar; Ctrl-C keeps what is measured by then."""
    results: list[Result] = []
    shown = track(cases, "running", console=console, transient=True)
    try:
        for seed, case in enumerate(shown):
            results += run_case(case, rounds, seed)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: only the cases that were finished are shown[/]")
    return results


# -- data


def random_file(path: Path, nbytes: int) -> Path:
    """Make a file of random bytes, unless it is there."""
    if not path.exists() or path.stat().st_size != nbytes:
        path.parent.mkdir(parents=True, exist_ok=True)
        block = np.random.default_rng(nbytes).bytes(min(nbytes, 64 * MIB))
        with path.open("wb") as file:
            for at in range(0, nbytes, len(block)):
                file.write(block[: nbytes - at])
            file.flush()
            os.fsync(file.fileno())
    return path


def small_files(folder: Path, n: int, nbytes: int) -> list[Path]:
    """Make `n` files of random bytes, unless they are there."""
    return [random_file(folder / f"{nbytes}-{k:05}.bin", nbytes) for k in range(n)]


def lineitem(folder: Path, scale: float) -> list[Path]:
    """Make TPC-H lineitem in four Parquet files, unless it is there."""
    final = folder / f"lineitem-sf{scale:g}"
    if not final.exists():
        folder.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
        _generate(building / "raw", scale)
        (building / "plain").mkdir()
        for k, source in enumerate(sorted((building / "raw").rglob("*.parquet"))):
            _rewrite(source, building / "plain" / f"lineitem.{k}.parquet")
        (building / "plain").rename(final)
        shutil.rmtree(building)
    return sorted(final.glob("*.parquet"))


def _generate(folder: Path, scale: float) -> None:
    program = Path(sys.executable).with_name("tpchgen-cli")
    options = ["-s", f"{scale:g}", "--tables=lineitem", f"--parts={FILES}", "--no-progress"]
    subprocess.run(
        [str(program), "parquet", *options, f"--output-dir={folder}"],
        check=True,
        capture_output=True,
    )


def _rewrite(source: Path, target: Path) -> None:
    """Write strings as plain ones: pyarrow cannot filter what tpchgen-cli marks as string_view."""
    table = pq.read_table(source)
    plain = [
        pa.field(column.name, pa.string() if column.type == pa.string_view() else column.type)
        for column in table.schema
    ]
    pq.write_table(table.cast(pa.schema(plain)), target, row_group_size=250_000)


# -- the report


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version,
        "load_average": list(os.getloadavg()),
        **versions,
    }


def show_results(results: Sequence[Result], title: str) -> None:
    """Print a table; the ratio is of the rate to that of the case's best contender."""
    table = Table("case", "", "contender", "median", "min .. max", "rate", "of best", title=title)
    table.columns[2].no_wrap = True
    if any(row.each_s for row in results):
        table.add_column("p50, p99 of a read")
    for rows in by_case(results):
        best = max(row.rate for row in rows)
        for row in rows:
            table.add_row(
                f"{row.section}: {row.case}" if row is rows[0] else "",
                row.state if row is rows[0] else "",
                row.contender,
                seconds_text(row.median_s),
                f"{seconds_text(min(row.seconds))} .. {seconds_text(max(row.seconds))}",
                rate_text(row.rate, row.unit),
                f"{row.rate / best:.0%}",
                *latency_text(row),
            )
        table.add_section()
    console.print(table)


def by_case(results: Sequence[Result]) -> Iterator[list[Result]]:
    """Group results by case, in their order."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for one in results:
        groups.setdefault((one.section, one.case, one.state), []).append(one)
    yield from groups.values()


def seconds_text(seconds: float) -> str:
    """Return seconds with a unit that suits them."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def latency_text(row: Result) -> list[str]:
    """Return the cell with the percentiles of the single reads, if they were measured."""
    return [f"{row.percentile_s(50) * 1e3:.1f}, {row.percentile_s(99) * 1e3:.1f} ms"] if row.each_s else []


def rate_text(rate: float, unit: str) -> str:
    """Return a rate, bytes in MB."""
    return f"{rate / 1e6:,.0f} MB/s" if unit == "bytes" else f"{rate:,.0f} {unit}/s"


def _without_folder(word: str) -> str:
    """Return the last part of what is an absolute path: where things are on a machine says nothing."""
    return Path(word).name if Path(word).is_absolute() or word == sys.argv[0] else word


def save(out: Path | None, name: str, facts: dict[str, Any], figure: Any) -> None:
    """Write ``name.json`` and ``name.png`` into the folder `out`."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    facts = {"command": [_without_folder(word) for word in sys.argv], **describe_machine(), **facts}
    (out / f"{name}.json").write_text(json.dumps(facts, indent=1, default=str) + "\n")
    figure.savefig(out / f"{name}.png", dpi=110)
    console.print(f"written: {out / name}.json and .png")


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return plain types: every run, and of the single reads the percentiles."""
    return [
        {
            **asdict(one),
            "median_s": one.median_s,
            "rate": one.rate,
            "each_s": {str(p): one.percentile_s(p) for p in PERCENTILES} if one.each_s else None,
        }
        for one in results
    ]


def draw_rates(results: Sequence[Result], title: str) -> Any:
    """Draw a panel for each case: a bar for each contender, a whisker from slowest to fastest."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - for the picture only

    groups = list(by_case(results))
    columns = 2
    lines = -(-len(groups) // columns)
    height = 0.22 * sum(max(map(len, groups[k : k + 2])) + 3 for k in range(0, len(groups), 2))
    figure = Figure(figsize=(13, max(3.0, height + 0.8)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, rows in zip(panels, groups, strict=False):
        _draw_panel(panel, rows)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    return figure


def _draw_panel(panel: Any, rows: list[Result]) -> None:
    if all(row.each_s for row in rows):
        _draw_latencies(panel, rows)
    else:
        _draw_bars(panel, rows)
    panel.invert_yaxis()
    panel.tick_params(labelsize=7)


def _draw_latencies(panel: Any, rows: list[Result]) -> None:
    names = [row.contender for row in rows]
    halves, worst = ([row.percentile_s(p) * 1e3 for row in rows] for p in (50, 99))
    panel.hlines(names, halves, worst, colors=[_colour(row) for row in rows], linewidth=5)
    panel.plot(halves, names, "|", color="#333")
    panel.set_xlim(left=0)
    panel.set_title(f"{rows[0].section}: {rows[0].case} (ms, p50 to p99)", fontsize=8)


def _colour(row: Result) -> str:
    return "#d1495b" if row.contender.startswith("headrace") else "#8d99ae"


def _draw_bars(panel: Any, rows: list[Result]) -> None:
    rates = np.array([row.rate for row in rows])
    fastest = np.array([row.amount / min(row.seconds) for row in rows]) - rates
    slowest = rates - np.array([row.amount / max(row.seconds) for row in rows])
    scale = 1e6 if rows[0].unit == "bytes" else 1
    colours = [_colour(row) for row in rows]
    whiskers = np.array([slowest, fastest]) / scale
    panel.barh([row.contender for row in rows], rates / scale, color=colours, xerr=whiskers, ecolor="#333")
    unit = "MB" if rows[0].unit == "bytes" else rows[0].unit
    panel.set_title(f"{rows[0].section}: {rows[0].case}, {rows[0].state} ({unit}/s)", fontsize=8)


# -- the command line


def parser(text: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=text.strip().partition("\n")[0], formatter_class=argparse.HelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="little data and few rounds: does it run?")
    made.add_argument("--rounds", type=int, help="counted rounds of each case (default 5, quick 2)")
    default = Path(tempfile.gettempdir()) / "headrace-benchmarks"
    made.add_argument(
        "--data-dir", type=Path, default=default, help="where data is kept (default %(default)s)"
    )
    made.add_argument("--out", type=Path, help="folder for the JSON file and the PNG")
    return made


def parse_sections(
    options: argparse.ArgumentParser, sections: Sequence[str], on_demand: Sequence[str] = ()
) -> argparse.Namespace:
    """Parse the command line with the sections to run; none named is all but those on demand."""
    every = *sections, *on_demand
    options.add_argument("sections", nargs="*", help=f"of {', '.join(every)}; none: all, or nearly")
    given = options.parse_args()
    unknown = set(given.sections) - set(every)
    if unknown:
        options.error(f"no such section: {sorted(unknown)}; there are {', '.join(every)}")
    given.sections = given.sections or list(sections)
    given.rounds = given.rounds or (2 if given.quick else 5)
    return given


def prepare() -> None:
    """Take the environment's settings of headrace away: the scripts set what they compare."""
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        console.print(f"[yellow]{name} is set and is ignored here[/]")
        del os.environ[name]
