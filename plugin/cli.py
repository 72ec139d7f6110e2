"""The command line: ``headrace scan``, ``headrace doctor``, ``headrace demo``.

Owns arguments, exit codes and what is printed; the work is done in `_scan`, `doctor` and `demo`,
which are imported by the command that needs them, so that ``--help`` is quick.

Results go to stdout: a table, or one JSON object with ``--json``. The progress bar and errors go to
stderr, the bar only where that is a terminal. An error is one line, without a traceback and without
credentials. Exit codes: 0 done, 1 the job failed, 2 what was asked makes no sense, 130 interrupted.

Not done here: reading, measuring, or anything with threads.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import re
import sys
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from typing_extensions import override

import headrace
from headrace.redact import MASK, redact_text, redact_url, secrets_of
from headrace.settings import HeadraceWarning, SchedulerMode, SettingsError
from headrace.timeline import NO_PLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace._scan import Progress, ScanReport, ScanRequest

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130
_MODES = get_args(SchedulerMode)
_FORMATS = ("parquet", "csv", "ipc", "orc")
_TRACES = (".png", ".json")
_LONGEST_ERROR_CHARS = 600
_SHORT_CHARS = len("-o")
_IGNORED_VALUE = re.compile(r"(?<=ignored explicit argument ).*", re.DOTALL)

_SCAN_HELP = """\
Read a dataset through headrace's I/O scheduler, and print rows, bytes, ops and time. Nothing is
kept of the data: this measures reading and decoding.

examples:
  headrace scan data/                          every file under a folder, all of one format
  headrace scan 'logs/2024-*.csv.gz'           a glob
  headrace scan s3://bucket/table --columns id,price -o anon=true
  headrace scan lineitem.parquet --filter "l_quantity > 30 and l_shipmode == 'AIR'"
  headrace scan data/ --mode lite --trace timeline.png
"""
_FILTER_HELP = (
    "keep rows for which this holds: columns (a.b is a field of a), numbers, 'strings', True, False, "
    "== != < <= > >=, in [...], not in [...], is None, is not None, and/or/not, + - * /, "
    'date("1994-01-01"), time("12:00"), timestamp("1994-01-01T12:00") (with +00:00 where the column has '
    'a time zone), col("odd name"). Numbers are exact, but what is divided, or stands beside a float, is a '
    "64-bit float"
)
_OPTION_HELP = (
    "option of the filesystem, or of headrace, repeatable: KEY=TEXT, where true, false, null, {...} and "
    "[...] are read as JSON; KEY:=JSON for a number. Credentials are better left in the environment or a "
    "profile: other users of the machine can see a command line"
)


class UsageError(ValueError):
    """The command line asks for something that makes no sense; exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        The arguments, without the program's name; None: those of the process.

    Returns
    -------
    int
        The exit code. Misspelt options leave through ``SystemExit`` with code 2, as argparse does.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if getattr(sys.stdout, "errors", None) == "strict" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that the locale has not
    arguments, secrets = argparse.Namespace(), frozenset[str]()
    logging.basicConfig(format="%(name)s: %(message)s")  # HEADRACE_LOG says what is logged
    try:
        arguments = _parsed(argv)
        secrets = _secrets(arguments)
        with _plain_warnings():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return _FAILED
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    except UsageError as error:
        return _complain(_one_line(str(error), secrets), _USAGE)
    except Exception as error:  # noqa: BLE001 - told in one line, with an exit code
        return _complain(_one_line(_failure(arguments, error), secrets), _FAILED)
    return code


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Have headrace's own warnings told in one line, as errors are, without a place in its code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, HeadraceWarning):
                _complain(_one_line(str(message), frozenset()), 0)
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = show_plainly
        yield


def _failure(arguments: argparse.Namespace, error: Exception) -> str:
    """Name what failed: s3fs says no more than "The specified bucket does not exist"."""
    message = f"{type(error).__name__}: {error}"
    url = getattr(arguments, "url", None)
    return f"{url}: {message}" if url and url not in message else message


def _forget_output() -> None:
    """Have what was printed go nowhere: nobody takes it, and the interpreter would try once more."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _complain(message: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()
    sys.stderr.write(f"headrace: {message}\n")
    return code


def _one_line(message: str, secrets: frozenset[str]) -> str:
    line = " ".join(redact_text(message, secrets).split())
    return line if len(line) <= _LONGEST_ERROR_CHARS else f"{line[:_LONGEST_ERROR_CHARS]}..."


class _Parser(argparse.ArgumentParser):
    """Tells no secret of a line that it does not understand."""

    _words: Sequence[str] = ()

    @override
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = sys.argv[1:] if args is None else args  # a command's parser is called so with its own
        return super().parse_known_args(args, namespace)

    @override
    def _print_message(self, message: str, file: Any = None) -> None:
        """Write it; what keeps help from being written is an error, which newer Pythons pass over."""
        if message and file is not None and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)

    @override
    def error(self, message: str) -> NoReturn:
        super().error(redact_text(_without_values(message, self._words)))


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(map(_without_value, unknown))}")
    except SystemExit:
        sys.stdout.flush()  # help that nobody takes is an error as any other
        raise
    return arguments


def _without_values(message: str, words: Sequence[str]) -> str:
    """Mask values in a message of argparse, which repeats words as they are, or quotes them.

    A word that is no assignment is told, where argparse knows what it should be: a command, a number.
    """
    behind = [word.partition("=")[2] for word in words if word.startswith("-")]
    known = {
        form: _without_value(text)
        for text in (*words, *behind)
        if "=" in text
        for form in (text, repr(text)[1:-1])
    }
    forms = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    if forms:
        message = re.sub(rf"(?<![^\s'\"])(?:{forms})(?![^\s'\"])", lambda match: known[match[0]], message)
    return _IGNORED_VALUE.sub(MASK, message)


def _without_value(argument: str) -> str:
    """Return an argument without what may be the value of an option, as of one whose -o was forgotten."""
    name, equals, value = argument.partition("=")
    if "://" in name or os.path.exists(argument):  # noqa: PTH110 - Path's raises, of what is too long for a name
        return argument
    if name.startswith("-") and not name.startswith("--"):
        return argument if len(argument) <= _SHORT_CHARS else f"{argument[:_SHORT_CHARS]}{MASK}"
    if equals and (value.strip("=") or name.startswith("--")):
        return f"{name}={MASK}"
    return name if name.startswith("--") else MASK  # the equals signs at the end are of base64: no name


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="headrace",
        description="Dataset reads behind one priority I/O scheduler.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {headrace.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_scan(commands)
    _add_doctor(commands)
    _add_demo(commands)
    return parser


def _add_scan(commands: Any) -> None:
    scan = commands.add_parser(
        "scan",
        help="read a dataset and say how it went",
        description=_SCAN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scan.add_argument("url", metavar="URL", help="file, folder, glob (in quotes), or any fsspec URL")
    scan.add_argument("--columns", type=_names, metavar="A,B", help="columns to read (default all)")
    scan.add_argument("--filter", metavar="EXPR", help=_FILTER_HELP)
    scan.add_argument("--format", choices=_FORMATS, help="of the files (default: by their suffix)")
    scan.add_argument(
        "--mode",
        choices=_MODES,
        help="who schedules; auto: what the backend prefers (default: the environment's)",
    )
    scan.add_argument("--batch-size", type=_short_count, metavar="N", help="the most rows in a batch")
    scan.add_argument("--limit", type=_count, metavar="N", help="stop after N rows")
    _add_storage_option(scan)
    scan.add_argument("--trace", type=_trace_file, metavar="FILE", help="write a timeline: .png or .json")
    scan.add_argument("--no-progress", action="store_true", help="no progress bar")
    _add_json(scan)
    scan.set_defaults(run=_run_scan)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="say what works on this machine, and why not",
        description="Check kernel, io_uring, limits, versions, and the settings in force with "
        "where each came from; with a URL, what would serve it. Exit code 1 if a check failed.",
    )
    doctor.add_argument("url", metavar="URL", nargs="?", help="storage to check as well")
    _add_storage_option(doctor)
    _add_json(doctor)
    doctor.set_defaults(run=_run_doctor)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="make a small dataset and scan it every way",
        description="Make a dataset of orders in Parquet, scan it through pyarrow.dataset and "
        "through Dask in each scheduler mode, compare the answers, print a table, clean up. "
        "Needs no server and no download.",
    )
    demo.add_argument("--rows", type=_count, default=None, metavar="N", help="rows to make")
    demo.add_argument("--directory", type=Path, metavar="DIR", help="where to put the data meanwhile")
    _add_json(demo)
    demo.set_defaults(run=_run_demo)


def _add_storage_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--storage-option", action="append", metavar="K=V", help=_OPTION_HELP)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"an empty column name in {text!r}")
    return names


def _count(text: str, bits: int = 64) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    if int(text) >= 1 << bits - 1:
        raise argparse.ArgumentTypeError(f"{text} needs more than {bits} bits")
    return int(text)


def _short_count(text: str) -> int:
    return _count(text, 32)  # Arrow's own type of it


def _trace_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in _TRACES:
        raise argparse.ArgumentTypeError(f"{text!r} ends with none of {' '.join(_TRACES)}")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} may not be written")
    if path.suffix == ".png" and find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError(f"{NO_PLOTS}; a .json needs none")
    return path


def _secrets(arguments: argparse.Namespace) -> frozenset[str]:
    options = _storage_options(getattr(arguments, "storage_option", None) or [])
    return secrets_of([options, getattr(arguments, "url", None) or ""])


def _storage_options(pairs: Sequence[str]) -> dict[str, Any]:
    return dict(_storage_option(pair) for pair in pairs)


def _storage_option(pair: str) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    is_json = name.endswith(":")
    name = name.removesuffix(":")
    if not equals or not name:  # which one stays out of the message, as a value below: it may be a secret
        raise UsageError("--storage-option needs KEY=VALUE, and one is not so")
    if not is_json and text not in ("true", "false", "null") and text[:1] not in ("{", "["):
        return name, text
    try:
        return name, json.loads(text)
    except json.JSONDecodeError as error:
        # The value stays out of the message: it may be a secret.
        raise UsageError(f"--storage-option {name}: no valid JSON, {error.msg}") from error


def _run_scan(arguments: argparse.Namespace) -> int:
    from headrace._scan import ScanRequestError, scan  # noqa: PLC0415

    request = _scan_request(arguments)
    try:
        with _tracing(arguments.trace), _progress(is_wanted=not arguments.no_progress) as progress:
            report = scan(request, progress)
    except (ScanRequestError, SettingsError) as error:
        raise UsageError(str(error)) from error
    _print_scan(arguments, report)
    return 0


def _scan_request(arguments: argparse.Namespace) -> ScanRequest:
    from headrace._filter import FilterError, parse_filter  # noqa: PLC0415
    from headrace._scan import ScanRequest  # noqa: PLC0415

    try:
        where = None if arguments.filter is None else parse_filter(arguments.filter)
    except FilterError as error:
        raise UsageError(f"--filter: {error}") from error
    return ScanRequest(
        url=arguments.url,
        columns=arguments.columns,
        where=where,
        file_format=arguments.format,
        mode=arguments.mode,
        batch_rows=arguments.batch_size,
        limit_rows=arguments.limit,
        storage_options=_storage_options(arguments.storage_option or []),
    )


@contextlib.contextmanager
def _tracing(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with headrace.trace() as timeline:
        yield
    if path.suffix == ".png":
        timeline.to_png(path)
    else:
        timeline.to_json(path)


@contextlib.contextmanager
def _progress(*, is_wanted: bool) -> Iterator[Progress | None]:
    """Show a bar on stderr while the block runs, if that is a terminal."""
    if not is_wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns = (
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rows=0)

        def show(done_bytes: int, total_bytes: int, rows: int) -> None:
            bar.update(task, completed=done_bytes, total=total_bytes, rows=rows)

        yield show


def _print_scan(arguments: argparse.Namespace, report: ScanReport) -> None:
    url = redact_url(arguments.url)
    if arguments.json:
        _print_json({"url": url, **asdict(report)})
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.filesize import decimal  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=escape(url), show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("rows", f"{report.rows:,}")
    table.add_row("files", f"{report.files:,} {report.file_format}, {decimal(report.file_bytes)}")
    table.add_row("mode", report.mode)
    is_counted = report.mode != "off"
    table.add_row("bytes read", decimal(report.bytes_read) if is_counted else "-")
    table.add_row("bytes delivered", decimal(report.bytes_delivered) if is_counted else "-")
    table.add_row("ops", f"{report.ops:,}" if is_counted else "-")
    table.add_row("time", f"{report.seconds:.3f} s")
    table.add_row("rows a second", f"{report.rows / report.seconds:,.0f}")
    rate = int(report.bytes_read / report.seconds)
    table.add_row("bytes read a second", f"{decimal(rate)}/s" if is_counted else "-")
    Console().print(table)


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, default=str) + "\n")


def _run_doctor(arguments: argparse.Namespace) -> int:
    from headrace.doctor import diagnose, render  # noqa: PLC0415

    options = _storage_options(arguments.storage_option or [])
    if options and arguments.url is None:
        raise UsageError("--storage-option is of the storage at a URL, and none is given")
    found = diagnose(arguments.url, options)
    if arguments.json:
        _print_json(found.to_json())
    else:
        render(found)
    return 0 if found.ok else _FAILED


def _run_demo(arguments: argparse.Namespace) -> int:
    from headrace.demo import DEFAULT_ROWS, render, run_demo  # noqa: PLC0415

    if arguments.directory is not None and not arguments.directory.is_dir():
        raise UsageError(f"there is no folder {str(arguments.directory)!r}")
    try:
        runs = run_demo(arguments.rows or DEFAULT_ROWS, arguments.directory)
    except SettingsError as error:
        raise UsageError(str(error)) from error
    if arguments.json:
        _print_json({"runs": [asdict(run) for run in runs]})
    else:
        render(runs)
    return 0
