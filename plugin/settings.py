"""The settings of headrace: where they come from, what they may be, which one wins.

Owns the frozen `Settings` record, which says of each what it is and may be (as a table: `SPECS`), and
the process's snapshot of its surroundings.  Resolution, for every setting on its own:

1. ``HEADRACE_SCHEDULER=off`` in the environment: the production kill switch beats everything.
2. A constructor option of `HeadraceFileSystem`.
3. The environment variable ``HEADRACE_<NAME>``.
4. ``dask.config`` at ``headrace.<name>`` (YAML files, ``DASK_HEADRACE__<NAME>``, ``set``).
5. The default.

Every value found is validated, also one that loses: a malformed variable is an error at the first
use, not on the day the argument above it is removed.  None and the empty string mean "not set".

Nothing is read at import.  The environment is read where the data is read, at first use, and kept
until `reload_settings`; a forked child reads its own.  ``DASK_HEADRACE__SCHEDULER=lite`` or a YAML file
counts also where nobody has imported Dask, or it would in some processes and not in others; where there
is none, Dask is not imported (`headrace.dask_config`).

Threading: any thread may call anything.  One lock guards the snapshot, never held while reading.
This module only validates: whether a backend exists is for the registry to say.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast, get_args

from headrace import parsing
from headrace.dask_config import may_name_headrace, read_dask_config
from headrace.errors import HeadraceError
from headrace.threads import after_fork_in_child

SchedulerMode = Literal["auto", "lite", "standard", "off"]
LocalBackendName = Literal["auto", "pread", "uring"]
CloudEngine = Literal["auto", "fsspec", "obstore"]
PrefetchMode = Literal["auto", "off"]

_PREFIX: Final = "HEADRACE_"
_TEST_PREFIX: Final = "HEADRACE_TEST_"  # the test suite's own, never settings
# IORING_MAX_ENTRIES of io_uring/io_uring.c; io_uring_setup(2) answers EINVAL above it.
_MAX_RING_ENTRIES: Final = 32_768
# What Kubernetes injects for a Service named "headrace" ("Discovering services" in its manual).
_KUBERNETES: Final = re.compile(r"PORT|SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)\w*")


class SettingsError(HeadraceError, ValueError):
    """A known setting has a value that is not allowed; the message names all three."""


class HeadraceWarning(UserWarning):
    """Something about the surroundings of headrace is probably not what was meant."""


_FLAG: Final = "0 or 1 (also false/true, no/yes, off/on)"
_SIZE: Final = "a size in bytes such as 67108864, 64MiB or 1e6"
_SECONDS: Final = "a finite number of seconds above 0, such as 30 or 2.5"


def _may_be(parse: Callable[[object], object], allowed: str) -> dict[str, Any]:
    return {"parse": parse, "allowed": allowed}


def _one_of(kind: object) -> dict[str, Any]:
    names = get_args(kind)
    return _may_be(parsing.choice(names), ", ".join(names))


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, validated; hashable and picklable.

    Where None is allowed it leaves the choice to the backend or engine that is used.
    """

    scheduler: SchedulerMode = field(default="auto", metadata=_one_of(SchedulerMode))
    """Who drives the I/O."""
    serialize: bool = field(default=False, metadata=_may_be(parsing.flag, _FLAG))
    """One op at a time in priority order, in any mode: for debugging."""
    local_backend: LocalBackendName = field(default="auto", metadata=_one_of(LocalBackendName))
    cloud_engine: CloudEngine = field(default="auto", metadata=_one_of(CloudEngine))
    io_parallelism: int | None = field(
        default=None, metadata=_may_be(parsing.count(1), "a whole number, at least 1")
    )
    """Ops in flight per scheduler, at least 1."""
    process_io_limit: int = field(
        default=0, metadata=_may_be(parsing.count(0), "a whole number; 0 is no limit")
    )
    """Ops in flight over the whole process; 0: no limit."""
    buffer_bytes: int = field(
        default=512 * 2**20, metadata=_may_be(parsing.size(0), f"{_SIZE}; 0 is no limit")
    )
    """The byte budget of the process; 0: no limit."""
    max_gap_bytes: int | None = field(default=None, metadata=_may_be(parsing.size(0), f"{_SIZE}, at least 0"))
    """The widest gap that is read through when ranges coalesce."""
    max_op_bytes: int | None = field(default=None, metadata=_may_be(parsing.size(1), f"{_SIZE}, at least 1"))
    """The largest op; longer reads are split."""
    prefetch: PrefetchMode = field(default="auto", metadata=_one_of(PrefetchMode))
    uring_queue_depth: int | None = field(
        default=None, metadata=_may_be(parsing.count(1, _MAX_RING_ENTRIES), "a whole number, 1 to 32768")
    )
    uring_direct: bool = field(default=False, metadata=_may_be(parsing.flag, _FLAG))
    """Read around the page cache (``O_DIRECT``)."""
    retries: int | None = field(
        default=None, metadata=_may_be(parsing.count(0), "a whole number, at least 0")
    )
    """Attempts after the first one."""
    timeout_s: float | None = field(default=None, metadata=_may_be(parsing.seconds, _SECONDS))
    """Seconds that a caller waits for a read; None: as long as it takes."""
    try_timeout_s: float | None = field(default=None, metadata=_may_be(parsing.seconds, _SECONDS))
    """Seconds for one attempt of an op at a store."""
    hedge: float = field(
        default=0.0, metadata=_may_be(parsing.share, "0, 1, or the share of second requests, up to 0.5")
    )
    """Second requests for late ops, for each op of a store; 0: none."""
    switch_interval_s: float = field(
        default=0.001,
        metadata=_may_be(parsing.interval, "a number of seconds from 0.00001 to 1; 0 for Python's own"),
    )
    """Seconds of a Python thread's turn while reads are under way; 0: as long as the program has it."""
    log: str | None = field(default=None, metadata=_may_be(parsing.level, ", ".join(parsing.LEVELS)))
    """Level of the logger "headrace"; None: left to the application."""


@dataclass(frozen=True, slots=True)
class SettingSpec:
    """How one setting is named and parsed, and what it is where nobody set it.

    `parse` maps a raw value to the field's value, and raises ValueError, TypeError, OverflowError
    or KeyError; `allowed` completes the sentence "allowed: ...".
    """

    name: str
    default: object
    parse: Callable[[object], object]
    allowed: str

    @property
    def variable(self) -> str:
        """The environment variable, such as ``HEADRACE_BUFFER_BYTES``."""
        return _PREFIX + self.name.upper()

    @property
    def dask_key(self) -> str:
        """The key in ``dask.config``, such as ``headrace.buffer-bytes``."""
        return "headrace." + self.name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting in force, and where it came from.

    `source` is "constructor", "environment HEADRACE_X", "dask.config headrace.x" or "default".
    """

    name: str
    value: object
    source: str


SPECS: Final[tuple[SettingSpec, ...]] = tuple(
    SettingSpec(one.name, one.default, **one.metadata) for one in dataclasses.fields(Settings)
)

_MISSPELT = 0.8
"""How alike names are of which one may be the other misspelt."""

_LIKE = 0.5
"""How alike they are of which one may have been meant by the other."""

OPTION_NAMES: Final[frozenset[str]] = frozenset(spec.name for spec in SPECS)
"""Constructor options that are headrace's own; all others belong to the wrapped filesystem."""


def load_settings(
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    dask_config: Mapping[Any, Any] | None = None,
) -> Settings:
    """Resolve all settings now.

    Parameters
    ----------
    options : mapping, optional
        Constructor options, names from `OPTION_NAMES` only.
    environ : mapping, optional
        Instead of ``os.environ``.
    dask_config : mapping, optional
        Instead of Dask's global configuration: a nested mapping with an entry "headrace".

    Returns
    -------
    Settings
        The settings in force.

    Raises
    ------
    SettingsError
        For a value that is not allowed, or an unknown constructor option.

    Warns
    -----
    HeadraceWarning
        Once per name and process, for an unknown ``HEADRACE_*`` or ``headrace.*`` name.
    """
    environ, section = _surroundings(environ, dask_config)
    for name, text in unknown_names(environ, section).items():
        _warn_once(name, text)
    rows = _resolve(options or {}, environ, section)
    return Settings(**{row.name: cast("Any", row.value) for row in rows})


def explain_settings(
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    dask_config: Mapping[Any, Any] | None = None,
) -> tuple[SettingRow, ...]:
    """Resolve as `load_settings` does, without a warning, and say where each value came from.

    Parameters and errors are those of `load_settings`; the rows are in the order of `SPECS`.
    """
    return _resolve(options or {}, *_surroundings(environ, dask_config))


def read_dask_section() -> dict[str, object]:
    """Return what Dask's configuration holds under ``headrace``."""
    return _dask_section(_dask_config())


def unknown_names(
    environ: Mapping[str, str] | None = None, section: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Find names that look like ours and are not.

    `section` is what ``dask.config`` holds under ``headrace``.  Returns each unknown name with one
    sentence about it, which tells a known name that is like it.
    """
    environ = os.environ if environ is None else environ
    known = {spec.variable for spec in SPECS}
    found = {
        name: _about_variable(name)
        for name in sorted(environ)
        if name.startswith(_PREFIX) and not name.startswith(_TEST_PREFIX) and name not in known
    }
    for key in sorted(set(section or {}) - OPTION_NAMES):
        name = f"headrace.{key}"
        hint = _hint("headrace.", _nearest(key, _LIKE))
        found[name] = f"{name} in dask.config is no setting of headrace and is ignored{hint}"
    return found


def _about_variable(name: str) -> str:
    stem = name.removeprefix(_PREFIX)
    hint = _hint(_PREFIX, _nearest(stem, _LIKE).upper())
    text = f"{name} is no setting of headrace and is ignored{hint}"
    if _KUBERNETES.fullmatch(stem):
        text += " (Kubernetes sets such names beside a Service called headrace: then all is well)"
    return text


def _hint(prefix: str, nearest: str) -> str:
    return f"; the nearest known name is {prefix}{nearest}" if nearest else ""


def _nearest(name: str, least: float = 0.0) -> str:
    """Return the known option most like `name` and so much at the least, or nothing.

    It is given without the prefix, which makes all alike.
    """
    return "".join(difflib.get_close_matches(name.lower(), sorted(OPTION_NAMES), n=1, cutoff=least))


def warn_misspelt(options: Iterable[str]) -> None:
    """Warn of constructor options which are the target's by their name, and most like one of ours."""
    for name in options:
        like = _nearest(name, _MISSPELT)
        if like and name not in like:  # ``timeout`` is what many call theirs
            text = f"option {name!r} goes to the wrapped filesystem; headrace's own is called {like!r}"
            warnings.warn(text, HeadraceWarning, stacklevel=5)  # who makes the filesystem


_warned: dict[str, object] = {}


def _warn_once(name: str, text: str) -> None:
    ticket = object()
    # One atomic step, so of two threads one warns; done before, as a filter may raise the warning.
    if _warned.setdefault(name, ticket) is ticket:
        warnings.warn(text, HeadraceWarning, stacklevel=3)


def _surroundings(
    environ: Mapping[str, str] | None, dask_config: Mapping[Any, Any] | None
) -> tuple[Mapping[str, str], dict[str, object]]:
    section = read_dask_section() if dask_config is None else _dask_section(dask_config)
    return (os.environ if environ is None else environ), section


def _dask_config() -> Mapping[Any, Any]:
    """Return Dask's global configuration; empty where Dask or its configuration is broken.

    A malformed YAML file makes the import fail: no reason for those who do not use Dask to lose
    their reads, so it is a warning.
    """
    if not may_name_headrace():
        return {}
    config, trouble = read_dask_config()
    if trouble:
        _warn_once("dask.config", trouble)
    return config


def _dask_section(config: Mapping[Any, Any]) -> dict[str, object]:
    section = config.get("headrace")
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise SettingsError(
            f"dask.config headrace={section!r} is not allowed; allowed: a mapping of settings "
            "(as variables: DASK_HEADRACE__SCHEDULER=lite, with two underscores)"
        )
    # dict() first: one step under the GIL, while another thread may be in dask.config.set.
    return {str(key).lower().replace("-", "_"): value for key, value in dict(section).items()}


def _resolve(
    options: Mapping[str, Any], environ: Mapping[str, str], section: Mapping[str, object]
) -> tuple[SettingRow, ...]:
    for name in sorted(set(options) - OPTION_NAMES):
        raise SettingsError(f"unknown option {name!r}; the nearest known name is {_nearest(name)}")
    return tuple(_resolve_one(spec, options, environ, section) for spec in SPECS)


def _resolve_one(
    spec: SettingSpec,
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    section: Mapping[str, object],
) -> SettingRow:
    candidates = (
        _read(spec, options.get(spec.name), "constructor", f"option {spec.name}"),
        _read(spec, environ.get(spec.variable), f"environment {spec.variable}", spec.variable),
        _read(spec, section.get(spec.name), *(2 * (f"dask.config {spec.dask_key}",))),
    )
    constructor, environment, dask = candidates
    if spec.name == "scheduler" and environment is not None and environment.value == "off":
        return environment  # the kill switch
    default = SettingRow(spec.name, spec.default, "default")
    return constructor or environment or dask or default


def _read(spec: SettingSpec, raw: object, source: str, where: str) -> SettingRow | None:
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return None
    try:
        return SettingRow(spec.name, spec.parse(raw), source)
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        raise SettingsError(f"{where}={raw!r} is not allowed; allowed: {spec.allowed}") from error


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What this process saw around it when it first looked."""

    environ: dict[str, str]
    dask_config: dict[str, object]
    settings: Settings

    @classmethod
    def take(cls) -> _Snapshot:
        environ = {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)}
        config: dict[str, object] = {"headrace": _dask_section(_dask_config())}
        return cls(environ, config, load_settings(None, environ, config))


class _Process:
    """The snapshot of this process; `generation` tells a slow first look that it is outdated."""

    __slots__ = ("generation", "lock", "snapshot")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        # A new lock: in a forked child the old one may be held by a thread that is not there.
        # Reentrant, as a finaliser or a signal handler may look inside the locked lines.
        self.lock = threading.RLock()
        self.generation = 0
        self.snapshot: _Snapshot | None = None

    def look(self) -> _Snapshot:
        kept, generation = self.snapshot, self.generation
        if kept is not None:
            return kept
        snapshot = _Snapshot.take()
        with self.lock:
            if generation == self.generation:
                self.snapshot = self.snapshot or snapshot  # another thread may have been first
                return self.snapshot
        return snapshot

    def look_again(self) -> _Snapshot:
        with self.lock:
            self.generation += 1
            generation = self.generation
        snapshot = _Snapshot.take()
        with self.lock:
            if generation == self.generation:
                self.snapshot = snapshot
        return snapshot


_process: Final = _Process()
after_fork_in_child(_process.forget)


def current_settings(options: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings by what this process saw around it at first use.

    Parameters
    ----------
    options : mapping, optional
        Constructor options to put over them, names from `OPTION_NAMES` only.

    Raises
    ------
    SettingsError
        As `load_settings` does; a failed first look is not kept.
    """
    snapshot = _process.look()
    if not options:
        return snapshot.settings
    return load_settings(options, snapshot.environ, snapshot.dask_config)


def reload_settings() -> Settings:
    """Look at the environment and ``dask.config`` anew, for this process, from now on.

    Raises as `load_settings` does; then the old settings stay in force.
    """
    return _process.look_again().settings
