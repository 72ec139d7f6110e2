"""``headrace doctor``: what works on this machine, what does not, why, and what to do about it.

Owns the checks and nothing that they check: `diagnose` collects, `render` draws, the command line
prints.  Every check tries the thing itself instead of deducing it from version numbers:

1. machine: kernel, Python, cores and memory, also those of the control group, limits;
2. versions of the libraries that matter, found without importing them;
3. system calls: io_uring (a ring is set up and closed), ``RWF_NOWAIT`` (a page is read),
   ``preadv2`` and ``statx``;
4. backends of the entry-point group ``headrace.backends``, each one loaded;
5. settings in force, with their sources; names that look like settings and are none;
6. with a URL: the filesystem behind it, and the backend and mode that would serve it, or that there was no
   answer in time.

A check that fails says so and never raises, on any operating system; secrets are redacted.  The
ring is set up in a child process, since a seccomp profile may kill who asks for one: without a URL,
behind which a read would do so, nothing here does.

Threading: blocking; what is behind a URL is looked up on a thread of its own.  Not done: measuring
speed, changing anything.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from headrace.backends import registry
from headrace.backends.uring import UringBackend
from headrace.dask_config import read_dask_config
from headrace.errors import BackendError
from headrace.filesystem import wrap_url
from headrace.limits import memory_bytes, soft_limit
from headrace.redact import redact_text, redact_url, secrets_of
from headrace.settings import (
    SettingRow,
    SettingsError,
    explain_settings,
    read_dask_section,
    unknown_names,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import Console

T = TypeVar("T")
Status = Literal["ok", "warn", "fail"]

_REQUIRED: Final = ("fsspec", "s3fs", "pyarrow", "dask", "numpy", "rich", "typing-extensions")
_OPTIONAL: Final = ("obstore", "gcsfs", "adlfs", "distributed", "pandas", "matplotlib")
_FEW_FILES: Final = 1024
_PROBE_LIMIT_S: Final = 20.0
_TARGET_LIMIT_S: Final = 20.0
_INSTEAD: Final = "local reads use preadv"
_NO_LIMIT_V1: Final = 2**60  # control groups v1 write "no limit" as a number of about 2**63

# What a thread does that wants a ring: errno of io_uring_setup(2), and why the ring does not read.
_PROBE: Final = """
import json
from headrace.backends._ring import LinuxKernel, Ring
from headrace.backends._rings import probe
number = 0
try:
    Ring(8, LinuxKernel()).close()
except OSError as error:
    number = error.errno
try:
    why = probe()
except OSError as error:
    why = f"io_uring: {error}"
print(json.dumps({"errno": number, "why": why}))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `status` is "ok", "warn" or "fail"; `cure` says what to do unless it is ok."""

    name: str
    status: Status
    detail: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What `diagnose` found.

    In `system` None stands for unknown and for unlimited, in `versions` for not installed.
    `settings` are those in force: none when one is not valid, and then a check says which.
    `target` is what `describe_target` found.
    """

    system: dict[str, Any]
    versions: dict[str, str | None]
    settings: tuple[SettingRow, ...]
    checks: tuple[Check, ...]
    target: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether no check failed; warnings are allowed."""
        return all(check.status != "fail" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain dicts, lists, strings and numbers."""
        return {"ok": self.ok} | dataclasses.asdict(self)


def diagnose(url: str | None = None, storage_options: Mapping[str, Any] | None = None) -> Report:
    """Examine this machine and this process's settings.

    Parameters
    ----------
    url : str, optional
        A path or an fsspec URL that should be readable; it is looked up, not read.
    storage_options : mapping, optional
        As for `describe_target`.

    Returns
    -------
    Report
        Never raises for what it finds: a failure is a `Check`.
    """
    system = _system()
    settings, checks = _settings()
    ring = _io_uring()
    checks += [*_limits(system, settings), ring, _nowait(), *map(_symbol, _SYMBOLS)]
    checks += [*_libraries(), _registered(), *_backends(ring)]
    target = None
    if url is not None:
        target, check = _target(url, storage_options or {})
        checks.append(check)
    return Report(system, _versions(), settings, tuple(checks), target)


# --- the machine ---------------------------------------------------------------------------------


def _system() -> dict[str, Any]:
    return {
        "kernel": f"{platform.system()} {platform.release()}".strip(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cores": os.cpu_count(),
        "cores_usable": _usable_cores(),
        "cores_of_cgroup": _cgroup_cores(),
        "memory_bytes": memory_bytes(),
        "memory_limit_bytes": _cgroup_memory_bytes(),
        "open_files_limit": soft_limit("RLIMIT_NOFILE"),
        "locked_memory_limit_bytes": soft_limit("RLIMIT_MEMLOCK"),
    }


def _usable_cores() -> int | None:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _cgroup_files(controller: str, *names: str) -> Iterator[str]:
    """Yield what the files called `names` hold, in this process's control group and its parents."""
    root = Path("/sys/fs/cgroup")
    for line in (_text(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        # Within a container the path may be the host's: then only the top is there.
        path = top / own.lstrip("/")
        for folder in (path, *(parent for parent in path.parents if parent.is_relative_to(top))):
            yield from filter(None, (_text(folder / name) for name in names))


def _cgroup_memory_bytes() -> int | None:
    found = _cgroup_files("memory", "memory.max", "memory.limit_in_bytes")
    limits = [int(text) for text in found if text.isdecimal()]
    return min((limit for limit in limits if limit < _NO_LIMIT_V1), default=None)


def _cgroup_cores() -> float | None:
    pairs = (text.split() for text in _cgroup_files("cpu", "cpu.max"))
    shares = [int(quota) / int(period) for quota, period in pairs if quota.isdecimal()]
    return min(shares, default=None)


def _limits(system: Mapping[str, Any], settings: tuple[SettingRow, ...]) -> Iterator[Check]:
    files = system["open_files_limit"]
    if files is not None and files < _FEW_FILES:
        cure = f"raise it, for example: ulimit -n {_FEW_FILES}"
        yield Check("open files", "warn", f"at most {files:,} open files", cure)
    else:
        yield Check("open files", "ok", "no limit" if files is None else f"at most {files:,}")
    yield _budget(system, {row.name: row.value for row in settings}.get("buffer_bytes"))


def _budget(system: Mapping[str, Any], budget: object) -> Check:
    """Compare the byte budget with the memory there is."""
    memory = min(filter(None, (system["memory_bytes"], system["memory_limit_bytes"])), default=None)
    if memory is None or not isinstance(budget, int):
        return Check("byte budget", "ok", "memory or budget unknown, not compared")
    cure = "set HEADRACE_BUFFER_BYTES to a quarter of the memory or less"
    detail = f"{_size(budget)} of {_size(memory)} memory"
    if budget == 0:
        return Check("byte budget", "warn", f"no limit, with {_size(memory)} memory", cure)
    if budget > memory // 2:
        return Check("byte budget", "warn", detail, cure)
    return Check("byte budget", "ok", detail)


def _size(size_bytes: int) -> str:
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= step:
            return f"{size_bytes / step:,.1f} {unit}"
    return f"{size_bytes} bytes"


# --- system calls --------------------------------------------------------------------------------


def _io_uring() -> Check:
    if sys.platform != "linux":
        return Check("io_uring", "ok", f"Linux only, not needed here: {_INSTEAD}")
    try:
        number, why = _set_up_ring()
    except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
        return Check("io_uring", "warn", f"could not be probed ({error}): {_INSTEAD}", "none needed")
    if number == 0 and why is None:
        return Check("io_uring", "ok", "works: batches of local reads can go through a ring")
    why, cure = (why, "allow io_uring_enter and _register, too") if number == 0 else _why_no_ring(number)
    return Check("io_uring", "warn", f"{why}: {_INSTEAD}", cure)


def _set_up_ring() -> tuple[int, str | None]:
    """Set up a ring in a child: errno or 0, and why it does not read.

    A child that a signal ended counts as refused: a seccomp filter may kill instead of refusing.
    """
    command = [sys.executable, "-P", "-c", _PROBE]
    child = subprocess.run(command, capture_output=True, check=False, timeout=_PROBE_LIMIT_S)  # noqa: S603
    if child.returncode < 0:
        return errno.EPERM, None
    found = json.loads(child.stdout)
    return int(found["errno"]), found["why"]


def _why_no_ring(number: int) -> tuple[str, str]:
    """Explain the errors of io_uring_setup(2), and what to do."""
    disabled = _text(Path("/proc/sys/kernel/io_uring_disabled"))
    if number == errno.ENOSYS:
        return "not in this kernel (5.1 or later has it; gVisor has not)", "use a newer kernel"
    if number == errno.EPERM and disabled in {"1", "2"}:
        why = f"switched off by the administrator (kernel.io_uring_disabled = {disabled})"
        return why, "sysctl kernel.io_uring_disabled=0"
    if number == errno.EPERM:
        why = "refused, most likely by the container's seccomp profile"
        return why, "run with a profile that allows io_uring_setup, io_uring_enter and _register"
    if number == errno.EINVAL:
        return "without DEFER_TASKRUN, which is of Linux 6.1", "use a newer kernel"
    if number == errno.ENOMEM:
        return "too little lockable memory (RLIMIT_MEMLOCK)", "raise it: ulimit -l unlimited"
    return f"refused: {os.strerror(number)}", "none known"


def _nowait() -> Check:
    """Read a page that is in the page cache, without permission to wait for a disk."""
    name, flag = "RWF_NOWAIT", getattr(os, "RWF_NOWAIT", None)
    if flag is None or not hasattr(os, "preadv"):
        return Check(name, "ok", "Linux only, not needed here: reads are plain, and wait for the disk")
    try:
        folder = tempfile.gettempdir()
        # Without a buffer, which a full disk would have close() write once more.
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
            why = _why_it_waits(file.fileno(), flag)
    except OSError as error:
        cure = "set TMPDIR to a folder that can be written to"
        return Check(name, "warn", f"not looked at, no temporary file: {error.strerror}", cure)
    if why is not None:
        return Check(name, "warn", f"not in {folder}: {why}", "hot reads are faster on ext4, xfs or btrfs")
    return Check(name, "ok", f"works in {folder}: hot reads never block")


def _why_it_waits(descriptor: int, flag: int) -> str | None:
    try:
        os.preadv(descriptor, [bytearray(4096)], 0, flag)
    except BlockingIOError:
        pass  # "not in the cache" is an answer, too
    except OSError as error:
        return error.strerror
    return None


_SYMBOLS: Final = ("preadv2", "statx")


def _symbol(name: str) -> Check:
    if sys.platform != "linux":
        return Check(name, "ok", "Linux only, not needed here")
    try:
        getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        cure = "a C library with it (glibc 2.28, musl 1.2.5)"
        return Check(name, "warn", "not in the C library: a slower way is used", cure)
    return Check(name, "ok", "in the C library")


# --- libraries and backends ----------------------------------------------------------------------


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in ("headrace", *_REQUIRED, *_OPTIONAL)}


def _libraries() -> Iterator[Check]:
    for name in _REQUIRED:
        if _version(name) is None:
            yield Check(name, "fail", "not installed, and headrace needs it", f"pip install {name}")


def _registered() -> Check:
    name = "headrace:: URLs"
    if list(importlib.metadata.entry_points(group="fsspec.specs", name="headrace")):
        return Check(name, "ok", "known to fsspec")
    cure = "install headrace with pip; a folder on PYTHONPATH registers nothing"
    return Check(name, "warn", "not known to fsspec", cure)


def _backends(ring: Check) -> list[Check]:
    points = registry.entry_points()
    if not points:
        cure = "install headrace with pip; a folder on PYTHONPATH registers nothing"
        return [Check("backends", "fail", f"none in the entry-point group {registry.GROUP}", cure)]
    return [_backend(points[name], ring) for name in sorted(points)]


def _backend(point: importlib.metadata.EntryPoint, ring: Check) -> Check:
    try:
        found = registry.load(point.name)
    except BackendError as error:
        cure = "repair or uninstall the distribution that ships it"
        return Check(f"backend {point.name}", "fail", str(error), cure)
    if found is UringBackend:
        why = None if ring.status == "ok" else "see io_uring"
    else:
        why = registry.why_not(found)
    detail = point.value if why is None else f"{point.value}: not used here, {why}"
    return Check(f"backend {point.name}", "ok", detail)


# --- settings ------------------------------------------------------------------------------------


def _settings() -> tuple[tuple[SettingRow, ...], list[Check]]:
    rows: tuple[SettingRow, ...] = ()
    section: dict[str, object] = {}
    try:
        section = read_dask_section()
        rows = explain_settings()
        checks = [Check("settings", "ok", "all valid"), *_unserved(rows)]
    except SettingsError as error:
        cure = "correct or unset it; until then headrace refuses to read"
        checks = [Check("settings", "fail", str(error), cure)]
    checks += [Check(name, "warn", text, f"unset {name}") for name, text in _strangers(section)]
    if trouble := read_dask_config()[1]:
        checks.append(Check("dask.config", "warn", trouble, "correct the file: Dask does not start with it"))
    return rows, checks


def _strangers(section: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    yield from unknown_names(section=section).items()
    for name in sorted(os.environ):
        if name.startswith("FSSPEC_HEADRACE"):
            # fsspec reads these at import and pickles them into tasks, from client to worker.
            yield name, f"{name} is fsspec's, and travels to workers; use HEADRACE_* instead"


def _unserved(rows: tuple[SettingRow, ...]) -> Iterator[Check]:
    """Find choices that are valid and that nothing installed can serve."""
    for row in rows:
        if (row.name, row.value) == ("cloud_engine", "obstore") and _version("obstore") is None:
            detail = f"{row.value} ({row.source}) is not installed: reads of object stores will fail"
            yield Check(row.name, "fail", detail, "pip install 'headrace[obstore]', or choose auto")


# --- the target ----------------------------------------------------------------------------------


def describe_target(url: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Look `url` up the way a read would.

    Parameters
    ----------
    url : str
        A path or an fsspec URL, chained or not, with ``headrace::`` in front or without, or ``headrace://``.
    storage_options : mapping, optional
        For its filesystem, and for headrace where they have the names of its own.

    Returns
    -------
    dict
        ``url`` (redacted), ``path``, ``filesystem`` (class of the wrapped one), ``backend``,
        ``mode``, ``engine_reason`` (why this cloud engine; empty for other storage), ``type`` ("file" or
        "directory") and ``size_bytes``.

    Raises
    ------
    Exception
        Whatever the filesystem raises: no such protocol, no such file, no permission.
    """
    fs, path = wrap_url(_plain(url), storage_options or {})
    info = fs.info(path)
    wrapped = type(fs.target)
    return {
        "url": redact_url(url),
        "path": redact_url(path),
        "filesystem": f"{wrapped.__module__}.{wrapped.__qualname__}",
        "backend": fs.backend_name or "none",
        "mode": fs.mode,
        "engine_reason": fs.stats().engine_reason,
        "type": info.get("type"),
        "size_bytes": info.get("size"),
    }


def _plain(url: str) -> str:
    url = url.removeprefix("headrace::")
    if "://" not in url and "::" not in url:  # a path, of Windows perhaps
        path = os.path.expanduser(url)  # noqa: PTH111 - as it is where it names no home
        url = f"file://{Path(path).absolute().as_posix()}"
    return url


def _target(url: str, storage_options: Mapping[str, Any]) -> tuple[dict[str, Any], Check]:
    shown = redact_url(url)
    try:
        found = _in_time(partial(describe_target, url, storage_options))
    except Exception as error:  # noqa: BLE001 - it is the finding
        text = redact_text(f"{type(error).__name__}: {error}", secrets_of([url, dict(storage_options)]))
        cure = "check the spelling, the credentials and the network"
        if isinstance(error, ImportError):
            cure = "install what it names: the extras of headrace are gcs, azure, obstore, dask and plot"
        return {"url": shown, "error": text}, Check("target", "fail", f"{shown}: {text}", cure)
    detail = f"{found['filesystem']}, backend {found['backend']}, mode {found['mode']}"
    if found["engine_reason"]:
        detail += f" ({found['engine_reason']})"
    return found, Check("target", "ok", f"{shown}: {detail}")


def _in_time(look: Callable[[], T]) -> T:
    """Look on a thread of its own, which is left behind where storage keeps silent for too long."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(look())
        except BaseException as error:  # noqa: BLE001 - the caller's
            answer.set_exception(error)

    threading.Thread(target=run, name="headrace-doctor", daemon=True).start()
    if not wait([answer], _TARGET_LIMIT_S).done:
        raise TimeoutError(f"no answer within {_TARGET_LIMIT_S:g} s")
    return answer.result()


# --- drawing -------------------------------------------------------------------------------------

_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def render(report: Report, console: Console | None = None) -> None:
    """Draw `report` as tables, on standard output or on the console given."""
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = console or Console()
    # Text, never markup: values may hold square brackets.
    pairs = [*report.system.items(), *report.versions.items(), *(report.target or {}).items()]
    _draw(
        console,
        "machine, versions, target",
        ("what", "value"),
        [(k, _shown(k, v)) for k, v in pairs],
    )
    rows = [(row.name, _shown(row.name, row.value), row.source) for row in report.settings]
    _draw(console, "settings in force", ("setting", "value", "source"), rows)
    lines = [
        (Text(check.status, _STYLES[check.status]), check.name, check.detail, check.cure)
        for check in report.checks
    ]
    _draw(console, "checks", ("status", "check", "found", "what to do"), lines)
    console.print(Text("No check failed." if report.ok else "Some checks failed.", "bold"))


def _draw(console: Console, title: str, columns: tuple[str, ...], rows: list[Any]) -> None:
    from rich.table import Column, Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    # Folded where they are longer than a narrow terminal: what is wrong stands at a value's end.
    headers = [Column(name, overflow="fold") for name in columns]
    table = Table(*headers, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(table)


def _shown(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value} ({_size(value)})"
    return str(value)
