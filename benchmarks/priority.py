"""Urgent 4 KiB point reads while a scan of another cold file saturates the storage.

Run it as root, with the data on the disk that is meant::

    python benchmarks/priority.py --data-dir /mnt/disk/bench --out docs/benchmarks

One *trial* of a contender, with cold caches at its beginning:

* *unloaded*: one thread reads 4 KiB after 4 KiB at random places of one file, each once.
* *scan alone*: four threads read another file from end to end, 8 MiB at a time, each a quarter of it.
* *loaded*: the scan goes on, and the point reads begin beside it. The trial ends after some seconds, or when
  a thread has read its quarter.

Contenders take turns, in an order that rotates; each makes its trials once a round. Shown are the
medians over the rounds of each round's p50, p99 and scan throughput. The scan's throughput under
headrace is to be compared with the best of the unscheduled ones.

Each peer has its best configuration: point reads go through an open file whose descriptor has
``POSIX_FADV_RANDOM`` (a kernel that reads ahead would read 32 times as much), and the unscheduled scans
are run with the kernel's readahead and without. Under headrace the scan has the default priority
and the point reads have ``fs.with_priority(-1)``; advice is headrace's own business.

Where fio is installed, it shows what the disk gives with a short queue and no Python at all: so many threads
in C read the scanned file in such pieces, another one makes the point reads.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from _bench import (
    GIB,
    KIB,
    MIB,
    console,
    make_cold,
    parser,
    prepare,
    random_file,
    rate_text,
    save,
    seconds_text,
)
from fsspec.implementations.local import LocalFileSystem
from rich.progress import track
from rich.table import Table

from headrace import HeadraceFileSystem

if TYPE_CHECKING:
    from pathlib import Path

POINT_BYTES = 4 * KIB
SCAN_BYTES = 8 * MIB
SCANNERS = 4
JOIN_S = 60.0

Opener = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to read: how it opens a file to scan, and one for point reads."""

    name: str
    open_scan: Opener
    open_point: Opener
    is_peer: bool = True


@dataclass(frozen=True, slots=True)
class Device:
    """The disk by itself: fio scans with so many reads of one size in flight."""

    in_flight: int
    op_bytes: int
    is_peer: bool = False

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"fio, {self.in_flight} x {self.op_bytes // KIB} KiB"


@dataclass(slots=True)
class Trials:
    """What one contender showed: a number for each round."""

    contender: str
    is_peer: bool
    unloaded_p50_s: list[float] = field(default_factory=list)
    unloaded_p99_s: list[float] = field(default_factory=list)
    loaded_p50_s: list[float] = field(default_factory=list)
    loaded_p99_s: list[float] = field(default_factory=list)
    loaded_reads: list[int] = field(default_factory=list)
    alone_bytes_per_s: list[float] = field(default_factory=list)
    scan_bytes_per_s: list[float] = field(default_factory=list)

    @property
    def slowdown(self) -> float:
        """Median p99 under load over that without."""
        return median(self.loaded_p99_s) / median(self.unloaded_p99_s)


@dataclass(frozen=True, slots=True)
class Setting:
    """The files and how long a trial lasts."""

    scan: Path
    point: Path
    seconds: float

    @property
    def files(self) -> list[Path]:
        """Both."""
        return [self.scan, self.point]


# -- contenders


def advised(file: Any, *, is_random: bool) -> Any:
    """Set the access pattern of a peer's own descriptor."""
    if is_random:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return file


def unscheduled(name: str, opener: Opener) -> list[Contender]:
    """Return a peer with the kernel's readahead under its scan, and without."""

    def at_random(path: str) -> Any:
        return advised(opener(path), is_random=True)

    return [
        Contender(name, opener, at_random),
        Contender(f"{name}, no readahead", at_random, at_random),
    ]


def scheduled(mode: str) -> Contender:
    """Return headrace in one mode."""
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler=mode)
    urgent = fs.with_priority(-1)
    return Contender(
        f"headrace {mode}",
        lambda path: fs.open(path, "rb"),
        lambda path: urgent.open(path, "rb"),
        is_peer=False,
    )


def all_contenders() -> list[Contender | Device]:
    """Return headrace in its modes, its peers, and the disk."""
    off = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="off")
    return [
        scheduled("lite"),
        scheduled("standard"),
        *unscheduled("headrace off", lambda path: off.open(path, "rb")),
        *unscheduled("fsspec local", lambda path: LocalFileSystem().open(path, "rb")),
        *unscheduled("pyarrow", pa.OSFile),
        *(Device(n, 128 * KIB) for n in (3, 4, 7, 12) if shutil.which("fio")),
    ]


# -- one trial


class Scan:
    """Threads that read a file from end to end, until told to stop."""

    def __init__(self, contender: Contender, path: Path) -> None:
        self.is_over = threading.Event()
        self.has_begun = threading.Barrier(SCANNERS + 1)
        self.bytes_read = [0] * SCANNERS
        quarter = path.stat().st_size // SCANNERS // SCAN_BYTES * SCAN_BYTES
        self._threads = [
            threading.Thread(
                target=self._read, args=(k, contender.open_scan(str(path)), quarter), daemon=True
            )
            for k in range(SCANNERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.has_begun.wait(JOIN_S)
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        for thread in self._threads:
            thread.join(JOIN_S)

    def begin(self) -> None:
        """Measure from now on."""
        self.began_s, self.bytes_before = perf_counter(), sum(self.bytes_read)

    @property
    def rate(self) -> float:
        """Bytes a second, since then and until now."""
        return (sum(self.bytes_read) - self.bytes_before) / (perf_counter() - self.began_s)

    def _read(self, k: int, file: Any, quarter: int) -> None:
        piece = bytearray(SCAN_BYTES)
        file.seek(k * quarter)
        self.has_begun.wait(JOIN_S)
        while self.bytes_read[k] < quarter and not self.is_over.is_set():
            got = file.readinto(piece)
            assert got == SCAN_BYTES, f"{got} bytes of the scanned file"
            self.bytes_read[k] += got
        self.is_over.set()
        file.close()


def point_reads(
    file: Any, starts: Sequence[int], truth: int, seconds: float, is_over: Callable[[], bool]
) -> list[float]:
    """Read one block after another; returns the seconds of each."""
    took = []
    began = perf_counter()
    for start in starts:
        before = perf_counter()
        file.seek(start)
        data = file.read(POINT_BYTES)
        after = perf_counter()
        took.append(after - before)
        assert data == os.pread(truth, POINT_BYTES, start), f"other bytes at {start}"
        if is_over() or after - began > seconds:
            break
    return took


def trial(contender: Contender | Device, setting: Setting, rng: np.random.Generator, trials: Trials) -> None:
    """Measure once without load and once with it."""
    if isinstance(contender, Device):
        device_trial(contender, setting, trials)
        return
    blocks = setting.point.stat().st_size // POINT_BYTES
    starts = (rng.permutation(blocks) * POINT_BYTES).tolist()
    truth = os.open(setting.point, os.O_RDONLY)
    os.posix_fadvise(truth, 0, 0, os.POSIX_FADV_RANDOM)
    make_cold(setting.files)
    file = contender.open_point(str(setting.point))
    alone = point_reads(file, starts[: blocks // 2], truth, setting.seconds / 3, lambda: False)
    make_cold(setting.files)
    with Scan(contender, setting.scan) as scan:
        scan.is_over.wait(setting.seconds / 8)
        trials.alone_bytes_per_s.append(scan.rate)
        scan.begin()
        loaded = point_reads(file, starts[blocks // 2 :], truth, setting.seconds, scan.is_over.is_set)
        trials.scan_bytes_per_s.append(scan.rate)
    file.close()
    os.close(truth)
    trials.unloaded_p50_s.append(float(np.percentile(alone, 50)))
    trials.unloaded_p99_s.append(float(np.percentile(alone, 99)))
    trials.loaded_p50_s.append(float(np.percentile(loaded, 50)))
    trials.loaded_p99_s.append(float(np.percentile(loaded, 99)))
    trials.loaded_reads.append(len(loaded))


def device_trial(device: Device, setting: Setting, trials: Trials) -> None:
    """Measure what fio does by itself and beside its own scan."""
    point = [
        "--name=point", f"--filename={setting.point}", f"--bs={POINT_BYTES}", "--rw=randread",
        "--randrepeat=0",
    ]  # fmt: skip
    share = setting.scan.stat().st_size // device.in_flight // MIB * MIB
    scan = [
        "--name=scan", f"--filename={setting.scan}", f"--bs={device.op_bytes}", "--rw=read",
        f"--numjobs={device.in_flight}", f"--size={share}", f"--offset_increment={share}",
        "--group_reporting", "--name=point", "--new_group", "--numjobs=1", "--offset_increment=0",
        f"--size={setting.point.stat().st_size}", *point[1:],
    ]  # fmt: skip
    (alone,) = fio(setting, setting.seconds / 3, point)
    scanned, loaded = fio(setting, setting.seconds, scan)
    for found, p50_s, p99_s in (
        (alone, trials.unloaded_p50_s, trials.unloaded_p99_s),
        (loaded, trials.loaded_p50_s, trials.loaded_p99_s),
    ):
        p50_s.append(found["clat_ns"]["percentile"]["50.000000"] / 1e9)
        p99_s.append(found["clat_ns"]["percentile"]["99.000000"] / 1e9)
    trials.loaded_reads.append(loaded["total_ios"])
    trials.scan_bytes_per_s.append(scanned["bw_bytes"])


def fio(setting: Setting, seconds: float, jobs: list[str]) -> list[dict[str, Any]]:
    """Run jobs with cold caches; returns what each group read."""
    make_cold(setting.files)
    common = ["--ioengine=psync", "--fadvise_hint=random", "--invalidate=0", "--time_based", "--readonly"]
    command = ["fio", "--output-format=json", *common, f"--runtime={seconds}", *jobs]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return [job["read"] for job in json.loads(found.stdout)["jobs"]]


def run(contenders: Sequence[Contender | Device], setting: Setting, rounds: int) -> list[Trials]:
    """Run all trials; a round before the first is not counted."""
    found = [Trials(one.name, one.is_peer) for one in contenders]
    warm_up = Setting(setting.scan, setting.point, min(setting.seconds, 0.5))
    for one in contenders:
        trial(one, warm_up, np.random.default_rng(0), Trials(one.name, one.is_peer))
    turns = [(number, turn) for number in range(rounds) for turn in range(len(contenders))]
    for number, turn in track(turns, "running", console=console, transient=True):
        k = (turn + number) % len(contenders)
        trial(contenders[k], setting, np.random.default_rng([number, k]), found[k])
    return found


# -- the report


def show(found: list[Trials], title: str) -> None:
    """Print the table."""
    peers = [one for one in found if one.is_peer] or found
    best = max(median(one.scan_bytes_per_s) for one in peers)
    columns = ("contender", "unloaded p50", "p99", "loaded p50", "p99", "p99 loaded / unloaded")
    table = Table(*columns, "reads", "scan alone", "beside", "of best unscheduled", title=title)
    for one in found:
        scan = median(one.scan_bytes_per_s)
        table.add_row(
            one.contender,
            seconds_text(median(one.unloaded_p50_s)),
            seconds_text(median(one.unloaded_p99_s)),
            seconds_text(median(one.loaded_p50_s)),
            seconds_text(median(one.loaded_p99_s)),
            f"{one.slowdown:,.1f}",
            f"{median(one.loaded_reads):,.0f}",
            rate_text(median(one.alone_bytes_per_s), "bytes") if one.alone_bytes_per_s else "",
            rate_text(scan, "bytes"),
            f"{scan / best:.0%}",
        )
    console.print(table)


def draw(found: list[Trials], title: str) -> Any:
    """Draw the latencies beside the throughput."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - for the picture only

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    at = np.arange(len(found))
    for shift, name, colour in (
        (-0.3, "unloaded_p50_s", "#cfd8dc"),
        (-0.1, "unloaded_p99_s", "#8d99ae"),
        (0.1, "loaded_p50_s", "#edae49"),
        (0.3, "loaded_p99_s", "#d1495b"),
    ):
        values = [1e3 * median(getattr(one, name)) for one in found]
        label = name.removesuffix("_s").replace("_", " ")
        left.barh(at + shift, values, 0.2, color=colour, label=label)
    left.set_yticks(at, [one.contender for one in found])
    left.invert_yaxis()
    left.set_xscale("log")
    left.set_xlabel("4 KiB point read, ms")
    left.legend(fontsize=8)
    rates = [median(one.scan_bytes_per_s) / 1e6 for one in found]
    colours = ["#d1495b" if one.contender.startswith("headrace ") else "#8d99ae" for one in found]
    right.barh(at, rates, color=colours)
    right.set_xlabel("scan beside it, MB/s")
    return figure


def main() -> None:
    """Run and report."""
    options = parser(__doc__ or "")
    options.add_argument("--seconds", type=float, help="of a loaded trial (default 4, quick 0.7)")
    options.add_argument("--only", action="append", help="part of a contender's name; repeatable")
    given = options.parse_args()
    prepare()
    scan_bytes, point_bytes = (GIB, 256 * MIB) if given.quick else (8 * GIB, 2 * GIB)
    setting = Setting(
        random_file(given.data_dir / f"scan-{scan_bytes}.bin", scan_bytes),
        random_file(given.data_dir / f"point-{point_bytes}.bin", point_bytes),
        given.seconds or (0.7 if given.quick else 4.0),
    )
    rounds = given.rounds or (2 if given.quick else 5)
    chosen = [
        one for one in all_contenders() if not given.only or any(part in one.name for part in given.only)
    ]
    found = run(chosen, setting, rounds)
    title = f"urgent point reads beside a scan, medians of {rounds} alternating rounds"
    show(found, title)
    facts = {"rounds": rounds, "seconds": setting.seconds, "trials": [asdict(one) for one in found]}
    save(given.out, "priority", facts, draw(found, title))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
