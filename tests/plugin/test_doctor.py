"""The doctor: each finding by forcing it, on this system and on ones pretended; it never raises."""

from __future__ import annotations

import ctypes
import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import dask
import pytest
from rich.console import Console

from headrace import doctor, settings
from headrace.backends.uring import UringBackend
from headrace.doctor import Check, Report, describe_target, diagnose, render
from headrace.limits import soft_limit
from headrace.settings import SPECS, SettingRow, reload_settings

GIB = 2**30


@pytest.fixture(autouse=True)
def _settings_of_each_test():
    yield
    reload_settings()


def named(report: Report, name: str) -> Check:
    (found,) = [check for check in report.checks if check.name == name]
    return found


def machine(**changes):
    system = {
        "memory_bytes": 8 * GIB,
        "memory_limit_bytes": None,
        "open_files_limit": 65_536,
    }
    return system | changes


def budget(value: object) -> tuple[SettingRow, ...]:
    return (SettingRow("buffer_bytes", value, "default"),)


def limits(system, rows) -> dict[str, Check]:
    return {check.name: check for check in doctor._limits(system, rows)}


# --- the report ----------------------------------------------------------------------------------


def test_a_report_on_this_machine_is_complete_and_is_json():
    report = diagnose()
    tree = json.loads(json.dumps(report.to_json()))
    assert tree["ok"] is report.ok
    assert [row["name"] for row in tree["settings"]] == [spec.name for spec in SPECS]
    assert {"kernel", "python", "platform", "cores", "memory_bytes"} <= tree["system"].keys()
    assert {"fsspec", "s3fs", "pyarrow", "dask", "numpy", "obstore"} <= tree["versions"].keys()
    assert tree["target"] is None
    names = [check["name"] for check in tree["checks"]]
    assert {"io_uring", "RWF_NOWAIT", "preadv2", "statx", "open files", "byte budget"} <= {*names}
    assert len(set(names)) == len(names)


def test_what_is_not_ok_has_a_cure():
    for check in diagnose("no-such-protocol-at-all://x").checks:
        assert bool(check.cure) == (check.status != "ok"), check


def test_warnings_do_not_make_a_report_fail():
    warned = Report({}, {}, (), (Check("a", "warn", "d", "c"), Check("b", "ok", "d")))
    assert warned.ok
    assert not Report({}, {}, (), (*warned.checks, Check("c", "fail", "d", "c"))).ok


def test_render_draws_everything_and_takes_no_markup():
    checks = (Check("one", "fail", "[red]kept[/red] [/]", "do [this]"), Check("two", "ok", "d"))
    rows = (SettingRow("buffer_bytes", 2**20, "default"), SettingRow("log", None, "default"))
    report = Report({"kernel": "K[1]"}, {"x": None}, rows, checks, {"url": "s3://[b]"})
    console = Console(file=io.StringIO(), width=200)
    render(report, console)
    text = console.file.getvalue()
    for part in ("K[1]", "[red]kept[/red] [/]", "do [this]", "1048576 (1.0 MiB)", "s3://[b]"):
        assert part in text
    assert "Some checks failed" in text


def test_render_goes_to_standard_output_by_default(capsys):
    render(Report({}, {}, (), ()))
    assert "No check failed" in capsys.readouterr().out


# --- settings ------------------------------------------------------------------------------------


def test_settings_come_with_their_source(monkeypatch):
    monkeypatch.setenv("HEADRACE_RETRIES", "5")
    assert SettingRow("retries", 5, "environment HEADRACE_RETRIES") in diagnose().settings


def test_a_bad_setting_fails_and_the_rest_is_still_examined(monkeypatch):
    monkeypatch.setenv("HEADRACE_RETRIES", "many")
    report = diagnose()
    check = named(report, "settings")
    assert (check.status, report.ok, report.settings) == ("fail", False, ())
    assert "HEADRACE_RETRIES='many'" in check.detail
    assert named(report, "RWF_NOWAIT")


def test_unknown_names_are_findings_and_no_warnings(monkeypatch):
    monkeypatch.setenv("HEADRACE_SHEDULER", "lite")
    monkeypatch.setenv("FSSPEC_HEADRACE_SCHEDULER", "lite")
    report = diagnose()  # a HeadraceWarning would be an error here
    assert "HEADRACE_SCHEDULER" in named(report, "HEADRACE_SHEDULER").detail
    assert named(report, "HEADRACE_SHEDULER").status == "warn"
    assert "workers" in named(report, "FSSPEC_HEADRACE_SCHEDULER").detail


def test_a_broken_configuration_of_dask_is_a_finding(monkeypatch):
    broken = importlib.import_module

    def import_module(name):
        if name == "dask.config":
            raise ValueError("dask.yaml is malformed")
        return broken(name)

    monkeypatch.setattr("headrace.dask_config.importlib.import_module", import_module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the settings themselves say it, once
        report = diagnose()
    assert named(report, "dask.config").status == "warn"
    assert "malformed" in named(report, "dask.config").detail


def test_a_library_that_the_target_needs_is_named_with_its_extra(monkeypatch):
    def missing(_url, _options):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(doctor, "describe_target", missing)
    found = named(diagnose("gs://bucket/key"), "target")
    assert "gcsfs" in found.detail
    assert "gcs" in found.cure


def test_an_engine_that_is_not_installed_fails(monkeypatch):
    monkeypatch.setenv("HEADRACE_CLOUD_ENGINE", "obstore")
    assert "cloud_engine" not in {check.name for check in diagnose().checks}
    monkeypatch.setattr("headrace.doctor._version", lambda name: None if name == "obstore" else "1.0")
    check = named(diagnose(), "cloud_engine")
    assert check.status == "fail"
    assert "environment HEADRACE_CLOUD_ENGINE" in check.detail
    assert "headrace[obstore]" in check.cure


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "value", "status"),
    [
        ({}, 512 * 2**20, "ok"),
        ({}, 5 * GIB, "warn"),
        ({}, 0, "warn"),
        ({"memory_limit_bytes": GIB // 2}, 512 * 2**20, "warn"),
        ({"memory_bytes": None}, 512 * 2**20, "ok"),
        ({}, None, "ok"),
    ],
    ids=["fits", "half", "unlimited", "cgroup", "memory unknown", "budget unknown"],
)
def test_the_budget_is_compared_with_the_memory(changes, value, status):
    assert limits(machine(**changes), budget(value))["byte budget"].status == status


@pytest.mark.parametrize(("files", "status"), [(256, "warn"), (1024, "ok"), (None, "ok")])
def test_few_open_files_are_a_warning(files, status):
    assert limits(machine(open_files_limit=files), ())["open files"].status == status


def test_a_limit_that_there_is_not_is_none(monkeypatch):
    assert soft_limit("RLIMIT_NO_SUCH") is None
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert soft_limit("RLIMIT_NOFILE") is None


@pytest.mark.parametrize(
    ("files", "memory", "cores"),
    [
        ({"proc": "0::/a/b", "a/memory.max": "1000", "a/b/memory.max": "max"}, 1000, None),
        ({"proc": "0::/gone", "memory.max": "2000", "cpu.max": "150000 100000"}, 2000, 1.5),
        ({"proc": "4:memory:/x", "memory/x/memory.limit_in_bytes": "3000"}, 3000, None),
        ({"proc": "4:memory:/", "memory/memory.limit_in_bytes": str(2**63 - 4096)}, None, None),
        ({"proc": "0::/a", "a/memory.max": "max", "a/cpu.max": "max 100000"}, None, None),
        ({}, None, None),
    ],
    ids=["parent", "container", "v1", "v1 unlimited", "v2 unlimited", "no groups"],
)
def test_limits_of_control_groups(monkeypatch, tmp_path, files, memory, cores):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    places = {"/sys/fs/cgroup": tmp_path, "/proc/self/cgroup": tmp_path / "proc"}
    monkeypatch.setattr(doctor, "Path", lambda path: places[path])
    assert doctor._cgroup_memory_bytes() == memory
    assert doctor._cgroup_cores() == cores


# --- system calls --------------------------------------------------------------------------------

RING = Check("io_uring", "ok", "works")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="system calls of Linux")


@needs_linux
def test_the_ring_is_really_tried():
    number, why = doctor._set_up_ring()
    libc = ctypes.CDLL(None, use_errno=True)
    flags = 1 << 12 | 1 << 13  # SINGLE_ISSUER, DEFER_TASKRUN
    params = (ctypes.c_uint32 * 30)(0, 0, flags)
    fd = libc.syscall(ctypes.c_long(425), ctypes.c_long(4), params)
    if fd >= 0:
        os.close(fd)
        assert (number, why) == (0, None)
    else:
        assert number == ctypes.get_errno()
        assert why


@needs_linux
@pytest.mark.parametrize(
    ("number", "disabled", "words"),
    [
        (errno.ENOSYS, None, "not in this kernel"),
        (errno.EPERM, "2", "kernel.io_uring_disabled = 2"),
        (errno.EPERM, "1", "kernel.io_uring_disabled = 1"),
        (errno.EPERM, "0", "seccomp"),
        (errno.EPERM, None, "seccomp"),
        (errno.EINVAL, None, "without DEFER_TASKRUN"),
        (errno.ENOMEM, None, "RLIMIT_MEMLOCK"),
        (errno.EMFILE, None, os.strerror(errno.EMFILE)),
    ],
)
def test_a_refused_ring_is_explained(monkeypatch, number, disabled, words):
    monkeypatch.setattr(doctor, "_set_up_ring", lambda: (number, f"io_uring: {os.strerror(number)}"))
    monkeypatch.setattr(doctor, "_text", lambda _path: disabled)
    check = doctor._io_uring()
    assert check.status == "warn"
    assert words in check.detail
    assert "local reads use preadv" in check.detail
    assert check.cure


@needs_linux
@pytest.mark.parametrize("why", [None, "io_uring: a read failed"])
def test_a_ring_is_used_where_it_reads(monkeypatch, why):
    monkeypatch.setattr(doctor, "_set_up_ring", lambda: (0, why))
    check = doctor._io_uring()
    if why is None:
        assert check.status == "ok"
    else:
        assert (check.status, check.detail) == ("warn", f"{why}: {doctor._INSTEAD}")
    (backend,) = [found for found in doctor._backends(check) if found.name == "backend uring"]
    assert ("see io_uring" in backend.detail) is (why is not None)


@needs_linux
def test_a_probe_that_is_killed_counts_as_refused(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", f"import os; os.kill(os.getpid(), {int(signal.SIGSYS)})")
    assert doctor._set_up_ring() == (errno.EPERM, None)


@needs_linux
@pytest.mark.parametrize("program", ["print('no json')", "print('{}')", "raise SystemExit(3)"])
def test_a_probe_that_fails_is_a_finding(monkeypatch, program):
    monkeypatch.setattr(doctor, "_PROBE", program)
    check = doctor._io_uring()
    assert check.status == "warn"
    assert "could not be probed" in check.detail


@needs_linux
def test_a_probe_that_cannot_start_or_end_is_a_finding(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert "could not be probed" in doctor._io_uring().detail

    def hang(*_args, **_options):
        raise subprocess.TimeoutExpired("python", 20)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert "could not be probed" in doctor._io_uring().detail


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_elsewhere_nothing_is_asked_of_linux(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    for name in ("RWF_NOWAIT", "preadv", "sched_getaffinity", "sysconf"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(doctor, "_set_up_ring", None)
    monkeypatch.setitem(sys.modules, "resource", None)
    report = diagnose()
    for name in ("io_uring", "RWF_NOWAIT", "preadv2", "statx"):
        assert named(report, name).status == "ok"
        assert "Linux only" in named(report, name).detail
    assert report.system["memory_bytes"] is None
    assert report.system["open_files_limit"] is None


@needs_linux
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BlockingIOError(errno.EAGAIN, "not cached"), "ok"),
        (OSError(errno.EOPNOTSUPP, "Operation not supported"), "warn"),
    ],
)
def test_reads_that_must_not_wait(monkeypatch, error, status):
    def preadv(*_args):
        raise error

    monkeypatch.setattr(os, "preadv", preadv)
    assert doctor._nowait().status == status


@needs_linux
def test_a_missing_symbol_is_a_warning():
    assert doctor._symbol("no_such_function_in_libc").status == "warn"


# --- libraries and backends ----------------------------------------------------------------------


def test_a_missing_library_fails_and_a_missing_optional_one_does_not(monkeypatch):
    monkeypatch.setattr(doctor, "_REQUIRED", ("no-such-library-a",))
    monkeypatch.setattr(doctor, "_OPTIONAL", ("no-such-library-b",))
    (check,) = doctor._libraries()
    assert check == Check(
        "no-such-library-a",
        "fail",
        "not installed, and headrace needs it",
        "pip install no-such-library-a",
    )
    assert doctor._versions()["no-such-library-b"] is None


def test_each_backend_is_loaded_and_one_that_cannot_be_is_a_failure(monkeypatch):
    values = {
        "good": "headrace.backends.memory:MemoryBackend",
        "else": "headrace.settings:Settings",
        "gone": "headrace.no_such_module:Backend",
        "less": "headrace.settings:NoSuchClass",
    }
    points = {name: EntryPoint(name, value, "headrace.backends") for name, value in values.items()}
    monkeypatch.setattr(doctor.registry, "entry_points", lambda: points)
    found = {check.name: check for check in doctor._backends(RING)}
    assert found["backend good"] == Check("backend good", "ok", "headrace.backends.memory:MemoryBackend")
    assert "no subclass" in found["backend else"].detail
    assert "No module named 'headrace.no_such_module'" in found["backend gone"].detail
    assert "NoSuchClass" in found["backend less"].detail
    assert [found[f"backend {name}"].status for name in ("gone", "less", "else")] == ["fail"] * 3


def test_without_an_installation_there_are_no_entry_points(monkeypatch):
    monkeypatch.setattr(doctor.registry, "entry_points", dict)
    assert [check.status for check in doctor._backends(RING)] == ["fail"]
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda **_: [])
    assert doctor._registered().status == "warn"


# --- the target ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "file://{}", "headrace::file://{}"])
@pytest.mark.parametrize("mode", ["lite", "standard", "off"])
def test_a_target_is_described(monkeypatch, tmp_path, form, mode):
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(123))
    monkeypatch.setenv("HEADRACE_SCHEDULER", mode)
    monkeypatch.setenv("HEADRACE_LOCAL_BACKEND", "auto")
    reload_settings()
    found = describe_target(form.format(path.as_posix()))
    assert found["filesystem"].endswith(".LocalFileSystem")
    assert (found["mode"], found["type"], found["size_bytes"]) == (mode, "file", 123)
    local = "uring" if UringBackend.unavailable() is None else "local"
    assert found["backend"] == ("none" if mode == "off" else local)
    assert Path(found["path"]) == path


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch, tmp_path):
    (tmp_path / "data.bin").write_bytes(bytes(7))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert describe_target("~/data.bin")["size_bytes"] == 7
    (tmp_path / "~nobody.bin").write_bytes(bytes(8))
    monkeypatch.chdir(tmp_path)
    assert describe_target("~nobody.bin")["size_bytes"] == 8, "a name that is no one's home"


def test_a_target_is_described_with_its_options(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"1")
    options = {"path": str(tmp_path), "target_protocol": "file"}
    assert describe_target("dir://data.bin", options)["size_bytes"] == 1
    (check,) = [check for check in diagnose("dir://data.bin", options).checks if check.name == "target"]
    assert check.status == "ok"


def test_a_target_of_ours_is_described_by_what_it_wraps(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"1")
    options = {"target_protocol": "file", "scheduler": "lite", "local_backend": "pread"}
    found = describe_target(f"headrace://{tmp_path.as_posix()}/data.bin", options)
    assert found["filesystem"].endswith(".LocalFileSystem")
    assert (found["backend"], found["mode"], found["size_bytes"]) == ("local", "lite", 1)


def test_a_report_with_a_target(tmp_path):
    report = diagnose(str(tmp_path))
    assert report.target is not None
    assert report.target["type"] == "directory"
    assert named(report, "target").status == "ok"
    json.dumps(report.to_json())


@pytest.mark.parametrize(
    "url", ["/no/such/file/anywhere", "nosuchprotocol://x", "zip://a::file:///no/such.zip", "://"]
)
def test_a_target_that_is_not_there_is_a_finding(url):
    report = diagnose(url)
    assert named(report, "target").status == "fail"
    assert report.target is not None
    assert report.target["error"]
    assert not report.ok


def test_a_target_that_keeps_silent_is_a_finding(monkeypatch):
    is_over = threading.Event()
    monkeypatch.setattr(doctor, "_TARGET_LIMIT_S", 0.1)
    monkeypatch.setattr(doctor, "describe_target", lambda *_: is_over.wait(60))
    check = named(diagnose("s3://bucket/key"), "target")
    is_over.set()
    assert (check.status, check.detail) == ("fail", "s3://bucket/key: TimeoutError: no answer within 0.1 s")
    assert "the network" in check.cure


def test_credentials_of_the_target_are_nowhere(monkeypatch):
    def fail(url, _options):
        raise PermissionError(f"denied for {url} with hunter2hunter2")

    monkeypatch.setattr(doctor, "describe_target", fail)
    report = diagnose("ftp://me:hunter2hunter2@host/x?sig=abcdefghij")
    text = json.dumps(report.to_json())
    console = Console(file=io.StringIO(), width=300)
    render(report, console)
    for secret in ("hunter2hunter2", "abcdefghij"):
        assert secret not in text + console.file.getvalue()
    assert "ftp://me:***@host/x" in text


def test_the_doctor_leaves_the_snapshot_alone(monkeypatch):
    before = settings.current_settings()
    monkeypatch.setenv("HEADRACE_RETRIES", "5")
    diagnose()
    assert settings.current_settings() is before


def test_no_temporary_folder_is_a_warning(monkeypatch):
    def refuse(*_args, **_options):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(doctor.tempfile, "gettempdir", refuse)
    found = doctor._nowait()
    assert (found.status, "TMPDIR" in found.cure) == ("warn", True)


@needs_linux
def test_a_full_temporary_folder_is_a_warning(monkeypatch):
    def full(*, dir, buffering=-1):  # noqa: A002 - the name that tempfile gives it
        return open("/dev/full", "r+b", buffering)  # noqa: PTH123

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", full)
    found = doctor._nowait()
    assert (found.status, "TMPDIR" in found.cure) == ("warn", True)
    assert os.strerror(errno.ENOSPC) in found.detail


def test_what_dask_has_under_headrace_and_is_no_setting_is_told():
    with dask.config.set({"headrace": {"sheduler": "lite"}}):
        assert "headrace.scheduler" in named(diagnose(), "headrace.sheduler").detail


def test_what_dask_has_under_headrace_and_is_no_mapping_is_a_finding(monkeypatch):
    monkeypatch.setenv("HEADRACE_SHEDULER", "lite")
    with dask.config.set({"headrace": "lite"}):
        report = diagnose()
    assert (named(report, "settings").status, report.settings) == ("fail", ())
    assert "headrace='lite'" in named(report, "settings").detail
    assert named(report, "HEADRACE_SHEDULER").status == "warn"
