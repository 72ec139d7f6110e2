"""Settings: precedence, parsing, errors that name things, one warning a name, one look a process.

`load` passes an explicit environment and configuration, so nothing of this machine is seen.  Tests
that need the real thing (Dask's own parsing, forks, laziness) run a child process.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import dask_config, parsing, settings
from headrace.errors import HeadraceError
from headrace.settings import (
    OPTION_NAMES,
    SPECS,
    HeadraceWarning,
    Settings,
    SettingsError,
    current_settings,
    explain_settings,
    load_settings,
    reload_settings,
    unknown_names,
)

DOCS = Path(__file__).parents[2] / "docs" / "environment.md"
NAMES = [spec.name for spec in SPECS]

# A value for each setting that is valid and not the default, as a variable holds it, and parsed.
OTHER = {
    "scheduler": ("lite", "lite"),
    "serialize": ("1", True),
    "local_backend": ("pread", "pread"),
    "cloud_engine": ("fsspec", "fsspec"),
    "io_parallelism": ("7", 7),
    "process_io_limit": ("9", 9),
    "buffer_bytes": ("64MiB", 64 * 2**20),
    "max_gap_bytes": ("4KiB", 4096),
    "max_op_bytes": ("1e6", 1_000_000),
    "prefetch": ("off", "off"),
    "uring_queue_depth": ("128", 128),
    "uring_direct": ("yes", True),
    "retries": ("0", 0),
    "timeout_s": ("2.5", 2.5),
    "try_timeout_s": ("7", 7.0),
    "hedge": ("0.05", 0.05),
    "switch_interval_s": ("0.0005", 0.0005),
    "log": ("debug", "DEBUG"),
}

BAD = {
    "scheduler": ["fast", "light", 1, True, ["lite"], math.nan],
    "serialize": ["2", "y e s", 2, 1.5, [], "maybe"],
    "local_backend": ["io_uring", "off", False],
    "cloud_engine": ["s3fs", "off"],
    "io_parallelism": ["0", "-1", "many", "1.5", 1.5, True, [], 2**40, math.nan, math.inf],
    "process_io_limit": ["-1", "1.5", -1, True],
    "buffer_bytes": [
        *("banana", "-1", "-5MiB", "nan", "NaN", "inf", "1e999", "5 foos", "MiB", "1..5MiB"),
        *("0.1B", "9999999999999 GiB", math.nan, math.inf, -1, 1.5, True, [], b"64", object()),
    ],
    "max_gap_bytes": ["-1", "lots"],
    "max_op_bytes": ["0", 0, "0 MiB", "-1"],
    "prefetch": ["on", "1", True],
    "uring_queue_depth": ["0", "32769", "deep"],
    "uring_direct": ["direct"],
    "retries": ["-1", "1.5", "many"],
    "timeout_s": ["0", "-1", "nan", "inf", "30s", True, [], 10**400],
    "try_timeout_s": ["0", "-1", "inf", "soon"],
    "hedge": ["0.6", "-0.1", "nan", "some", []],
    "switch_interval_s": ["-1", "2", True, "1e-9", "nan", "on", "soon", []],
    "log": ["LOUD", "10", 10, "NOTSET"],
}


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch):
    """Give each test a process that has seen and warned of nothing."""
    monkeypatch.setattr(settings, "_warned", {})
    monkeypatch.setattr(settings, "_process", settings._Process())


def load(options=None, environ=None, dask=None) -> Settings:
    return load_settings(options, environ or {}, {"headrace": dask} if dask is not None else {})


def variable(name: str) -> str:
    return f"HEADRACE_{name.upper()}"


def child(program: str, **environ: str) -> str:
    """Run `program` with only these HEADRACE and DASK variables; return what it prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "DASK_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- the record ----------------------------------------------------------------------------------


def test_one_is_one_however_it_is_written():
    assert load({"hedge": 1}) == load({"hedge": "1.0"}) == load({"hedge": True})


def test_defaults():
    assert load() == Settings(
        scheduler="auto",
        serialize=False,
        local_backend="auto",
        cloud_engine="auto",
        io_parallelism=None,
        process_io_limit=0,
        buffer_bytes=536_870_912,
        max_gap_bytes=None,
        max_op_bytes=None,
        prefetch="auto",
        uring_queue_depth=None,
        uring_direct=False,
        retries=None,
        timeout_s=None,
        try_timeout_s=None,
        hedge=0.0,
        switch_interval_s=0.001,
        log=None,
    )


def test_specs_options_and_fields_name_the_same_settings():
    fields = [field.name for field in dataclasses.fields(Settings)]
    assert fields == NAMES
    assert frozenset(fields) == OPTION_NAMES
    assert set(OTHER) == set(BAD) == set(fields)


def test_settings_are_frozen_hashable_picklable_and_readable():
    one, two = load(environ={"HEADRACE_RETRIES": "3"}), load({"retries": 3})
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert "retries=3" in repr(one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.retries = 4  # type: ignore[misc]


def test_the_error_is_ours_and_a_value_error():
    assert issubclass(SettingsError, ValueError)
    assert issubclass(SettingsError, HeadraceError)
    error = SettingsError("text")
    assert str(pickle.loads(pickle.dumps(error))) == "text"


# --- precedence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_source_reaches_each_setting(name):
    raw, value = OTHER[name]
    assert getattr(load({name: raw}), name) == value
    assert getattr(load({name: value}), name) == value
    assert getattr(load(environ={variable(name): raw}), name) == value
    assert getattr(load(dask={name: raw}), name) == value
    assert getattr(load(dask={name.replace("_", "-"): value}), name) == value


@pytest.mark.parametrize("name", NAMES)
def test_only_the_setting_named_changes(name):
    changed = load(environ={variable(name): OTHER[name][0]})
    assert dataclasses.replace(changed, **{name: getattr(Settings(), name)}) == Settings()


def test_constructor_beats_environment_beats_dask_beats_default():
    options, environ, dask = {"retries": 1}, {"HEADRACE_RETRIES": "2"}, {"retries": 3}
    assert load(options, environ, dask).retries == 1
    assert load(None, environ, dask).retries == 2
    assert load(None, None, dask).retries == 3
    assert load().retries is None


@pytest.mark.parametrize("value", ["off", "OFF", " off "])
def test_the_kill_switch_beats_the_constructor(value):
    environ = {"HEADRACE_SCHEDULER": value}
    assert load({"scheduler": "lite"}, environ, {"scheduler": "standard"}).scheduler == "off"


def test_nothing_but_the_kill_switch_beats_the_constructor():
    assert load({"scheduler": "off"}, {"HEADRACE_SCHEDULER": "lite"}).scheduler == "off"
    assert load({"scheduler": "lite"}, {"HEADRACE_SCHEDULER": "standard"}).scheduler == "lite"
    assert load({"scheduler": "lite"}, None, {"scheduler": "off"}).scheduler == "lite"
    assert load({"prefetch": "auto"}, {"HEADRACE_PREFETCH": "off"}).prefetch == "auto"


@pytest.mark.parametrize("unset", [None, "", "  "])
def test_none_and_empty_mean_not_set(unset):
    environ = {} if unset is None else {variable(name): unset for name in NAMES}
    nothing = dict.fromkeys(NAMES, unset)
    assert load(nothing, environ, nothing) == Settings()
    assert load({"retries": unset}, {"HEADRACE_RETRIES": "2"}).retries == 2


def test_explain_tells_each_source():
    rows = explain_settings(
        {"retries": 1, "scheduler": "lite"},
        {"HEADRACE_SCHEDULER": "off", "HEADRACE_LOG": "info"},
        {"headrace": {"buffer_bytes": 5}},
    )
    assert [row.name for row in rows] == NAMES
    found = {row.name: (row.value, row.source) for row in rows}
    assert found["retries"] == (1, "constructor")
    assert found["scheduler"] == ("off", "environment HEADRACE_SCHEDULER")
    assert found["log"] == ("INFO", "environment HEADRACE_LOG")
    assert found["buffer_bytes"] == (5, "dask.config headrace.buffer-bytes")
    assert found["prefetch"] == ("auto", "default")


# --- values --------------------------------------------------------------------------------------


SIZES = [
    ("0", 0),
    ("67108864", 67_108_864),
    ("64MiB", 67_108_864),
    ("64 MiB", 67_108_864),
    (" 64mib ", 67_108_864),
    ("64MB", 64_000_000),
    ("64M", 64_000_000),
    ("1e6", 1_000_000),
    ("0.5 GiB", 536_870_912),
    ("0.0MiB", 0),
    (1_000, 1_000),
    (1e6, 1_000_000),
    (np.int64(17), 17),
    (2**63 - 1, 2**63 - 1),
]


@pytest.mark.parametrize(("raw", "size_bytes"), SIZES, ids=[repr(raw) for raw, _ in SIZES])
def test_sizes(raw, size_bytes):
    found = load({"buffer_bytes": raw}).buffer_bytes
    assert found == size_bytes
    assert type(found) is int


@given(st.integers(0, 2**40), st.sampled_from(["", "B", "KiB", "MB", "MiB", "kB"]), st.booleans())
def test_sizes_with_any_unit_agree_with_arithmetic(number, unit, space):
    factor = {"": 1, "B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20}[unit]
    text = f"{number}{' ' if space else ''}{unit}"
    found = load(environ={"HEADRACE_BUFFER_BYTES": text}).buffer_bytes
    assert found == pytest.approx(number * factor, rel=1e-12)


def test_units_are_those_of_dask():
    from dask.utils import byte_sizes, parse_bytes

    for unit in byte_sizes:
        assert parsing.size(0)(f"2.5 {unit}") == parse_bytes(f"2.5 {unit}")
    assert {*parsing._UNITS} == {*byte_sizes}


@pytest.mark.parametrize("name", ["timeout_s", "try_timeout_s"])
def test_times_longer_than_locks_can_wait_are_a_year(name):
    assert getattr(load({name: 1e15}), name) == 365 * 86400
    assert getattr(load({name: "86400.5"}), name) == 86400.5


@pytest.mark.parametrize("value", [True, False])
def test_flags(value):
    texts = ("1", "true", "TRUE", "yes", " on ") if value else ("0", "false", "No", "off")
    for raw in (*texts, value, int(value)):
        assert load({"serialize": raw}).serialize is value


def test_false_is_off_because_yaml_reads_a_bare_off_as_false():
    found = load(dask={"scheduler": False, "prefetch": False})
    assert (found.scheduler, found.prefetch) == ("off", "off")


def test_choices_and_levels_are_read_in_any_case():
    found = load({"scheduler": " Lite ", "log": "warning"})
    assert (found.scheduler, found.log) == ("lite", "WARNING")


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_value_is_an_error_that_names_place_value_and_what_is_allowed(name):
    for raw in BAD[name]:
        _check_bad(name, raw)


def _check_bad(name, raw):
    spec = next(spec for spec in SPECS if spec.name == name)
    places = [(f"option {name}", {"options": {name: raw}})]
    places.append((f"dask.config {spec.dask_key}", {"dask": {name: raw}}))
    if isinstance(raw, str):
        places.append((variable(name), {"environ": {variable(name): raw}}))
    for where, sources in places:
        with pytest.raises(SettingsError) as caught:
            load(**sources)
        assert str(caught.value) == f"{where}={raw!r} is not allowed; allowed: {spec.allowed}"


def test_a_bad_value_is_an_error_also_where_it_loses():
    with pytest.raises(SettingsError, match="HEADRACE_RETRIES='x'"):
        load({"retries": 1}, {"HEADRACE_RETRIES": "x"})
    with pytest.raises(SettingsError, match=r"headrace\.retries"):
        load({"retries": 1}, None, {"retries": "x"})


def test_an_unknown_option_is_an_error_with_the_nearest_name():
    with pytest.raises(SettingsError, match=r"unknown option 'shceduler'.* scheduler$"):
        load({"shceduler": "lite"})


def test_a_configuration_that_is_no_mapping_is_an_error():
    with pytest.raises(SettingsError, match=r"headrace='lite'.*DASK_HEADRACE__SCHEDULER"):
        load(dask="lite")


# --- unknown names -------------------------------------------------------------------------------


def test_an_unknown_variable_is_one_warning_with_the_nearest_name():
    environ = {"HEADRACE_SHEDULER": "lite", "PATH": "", "MY_HEADRACE_X": "", "FSSPEC_HEADRACE": ""}
    with pytest.warns(HeadraceWarning) as caught:
        assert load(environ=environ) == Settings()
    (warning,) = caught
    assert "HEADRACE_SHEDULER" in str(warning.message)
    assert "HEADRACE_SCHEDULER" in str(warning.message)
    assert warning.filename == __file__
    load(environ=environ)  # again: silent, or the filter would raise


def test_a_name_that_is_like_none_is_told_no_other():
    with pytest.warns(HeadraceWarning, match="HEADRACE_XYZZY is no setting of headrace and is ignored$"):
        load(environ={"HEADRACE_XYZZY": ""})


def test_each_name_has_its_own_warning():
    with pytest.warns(HeadraceWarning, match="HEADRACE_RETRY "):
        load(environ={"HEADRACE_RETRY": ""})
    with pytest.warns(HeadraceWarning, match="HEADRACE_BUFFER ") as caught:
        load(environ={"HEADRACE_RETRY": "", "HEADRACE_BUFFER": ""})
    assert len(caught) == 1


def test_a_warning_turned_into_an_error_is_raised_once():
    with pytest.raises(HeadraceWarning):
        load(environ={"HEADRACE_RETRY": "1"})
    assert load(environ={"HEADRACE_RETRY": "1"}) == Settings()


@pytest.mark.parametrize(
    "stem",
    [
        *("PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP"),
        *("PORT_80_TCP_PROTO", "PORT_80_TCP_PORT", "PORT_80_TCP_ADDR", "PORT_53_UDP"),
    ],
)
def test_what_kubernetes_injects_is_a_warning_that_says_so(stem):
    with pytest.warns(HeadraceWarning, match=rf"^HEADRACE_{stem} .*Kubernetes"):
        load(environ={f"HEADRACE_{stem}": "tcp://10.0.0.11:80"})


def test_a_mere_typing_error_is_not_blamed_on_kubernetes():
    (text,) = unknown_names({"HEADRACE_REPORT": ""}).values()
    assert "Kubernetes" not in text


def test_names_of_the_test_suite_are_passed_over():
    assert unknown_names({"HEADRACE_TEST_SCALE": "1"}) == {}


def test_an_unknown_key_of_dask_is_a_warning():
    with pytest.warns(HeadraceWarning, match=r"headrace.retry in dask.config.* headrace.retries$"):
        load(dask={"retry": 1})


def test_of_many_threads_one_warns():
    barrier = threading.Barrier(8)

    def look() -> None:
        barrier.wait()
        settings._warn_once("HEADRACE_X", "text")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(caught) == 1


def test_explain_does_not_warn():
    assert explain_settings(None, {"HEADRACE_PORT": "1"}, {})


# --- the snapshot --------------------------------------------------------------------------------


def test_the_first_look_counts_until_reload(monkeypatch):
    monkeypatch.setenv("HEADRACE_RETRIES", "1")
    first = current_settings()
    monkeypatch.setenv("HEADRACE_RETRIES", "2")
    assert current_settings() is first
    assert first.retries == 1
    assert current_settings({"timeout_s": 5}) == dataclasses.replace(first, timeout_s=5.0)
    assert reload_settings().retries == 2
    assert current_settings().retries == 2


def test_a_failed_first_look_is_not_kept(monkeypatch):
    monkeypatch.setenv("HEADRACE_RETRIES", "x")
    for _ in range(2):
        with pytest.raises(SettingsError, match="HEADRACE_RETRIES='x'"):
            current_settings()
    monkeypatch.setenv("HEADRACE_RETRIES", "4")
    assert current_settings().retries == 4


def test_a_failed_reload_keeps_what_was_in_force(monkeypatch):
    monkeypatch.setenv("HEADRACE_RETRIES", "1")
    first = current_settings()
    monkeypatch.setenv("HEADRACE_RETRIES", "x")
    with pytest.raises(SettingsError):
        reload_settings()
    assert current_settings() is first


def test_a_slow_first_look_does_not_undo_a_reload(monkeypatch):
    monkeypatch.setenv("HEADRACE_RETRIES", "1")
    take, looking, go_on = settings._Snapshot.take, threading.Event(), threading.Event()

    def slow_take():
        snapshot = take()
        if threading.current_thread() is thread:
            looking.set()
            go_on.wait(30)
        return snapshot

    thread = threading.Thread(target=current_settings)
    monkeypatch.setattr(settings._Snapshot, "take", slow_take)
    thread.start()
    assert looking.wait(30)
    monkeypatch.setenv("HEADRACE_RETRIES", "2")
    reload_settings()
    go_on.set()
    thread.join()
    assert current_settings().retries == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on Windows")
def test_a_forked_child_looks_for_itself_even_if_the_lock_was_held():
    program = """
import os, threading
from headrace import settings
os.environ["HEADRACE_RETRIES"] = "1"
assert settings.current_settings().retries == 1
held, done = threading.Event(), threading.Event()
def hold():
    with settings._process.lock:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
os.environ["HEADRACE_RETRIES"] = "2"
pid = os.fork()
if pid == 0:
    import faulthandler
    faulthandler.dump_traceback_later(30, exit=True)
    os._exit(10 + settings.current_settings().retries)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
done.set()
thread.join()
print(status, settings.current_settings().retries)
"""
    assert child(program) == "12 1"


# --- Dask and laziness, in a process of their own ------------------------------------------------

SHOW = """
import json
from headrace.settings import explain_settings
print(json.dumps({row.name: [row.value, row.source] for row in explain_settings()}))
"""


def test_importing_reads_nothing_and_imports_no_dask():
    program = """
import sys
import headrace.settings
print("dask" in sys.modules)
"""
    assert child(program, HEADRACE_RETRIES="not read, so no error") == "False"


def test_dask_variables_count_though_nobody_imported_dask():
    found = json.loads(
        child(
            SHOW,
            DASK_HEADRACE__SCHEDULER="lite",
            DASK_HEADRACE__BUFFER_BYTES="64MiB",
            DASK_HEADRACE__MAX_OP_BYTES="1e6",
            DASK_HEADRACE__SERIALIZE="True",
            DASK_HEADRACE__PREFETCH="off",
        )
    )
    assert found["scheduler"] == ["lite", "dask.config headrace.scheduler"]
    assert found["buffer_bytes"][0] == 64 * 2**20
    assert found["max_op_bytes"][0] == 1_000_000
    assert found["serialize"][0] is True
    assert found["prefetch"][0] == "off"


def test_a_yaml_file_of_dask_counts(tmp_path):
    text = "headrace:\n  scheduler: off\n  max-gap-bytes: 1MiB\n"
    (tmp_path / "headrace.yaml").write_text(text)
    found = json.loads(child(SHOW, DASK_CONFIG=str(tmp_path)))
    assert found["scheduler"] == ["off", "dask.config headrace.scheduler"]
    assert found["max_gap_bytes"] == [2**20, "dask.config headrace.max-gap-bytes"]


def test_a_look_imports_dask_only_where_it_may_say_something(tmp_path):
    """It takes 0.2 s."""
    program = """
import sys
from headrace.settings import current_settings
current_settings()
print("dask" in sys.modules)
"""
    assert child(program, HOME=str(tmp_path)) == "False"
    assert child(program, HOME=str(tmp_path), HEADRACE_BUFFER_BYTES="64MiB") == "False"
    assert child(program, HOME=str(tmp_path), DASK_ANYTHING="1") == "True"


def test_dask_looks_for_files_where_we_think_it_does():
    program = """
import dask.config
from headrace.dask_config import folders
print(list(map(str, folders())) == dask.config.paths)
"""
    assert child(program) == "True"


def test_dask_config_set_counts_at_reload():
    import dask

    current_settings()
    with dask.config.set({"headrace.retries": 6, "headrace.io-parallelism": 3}):
        assert current_settings().retries is None
        assert reload_settings().retries == 6
        assert reload_settings().io_parallelism == 3


def test_a_broken_configuration_of_dask_is_a_warning_and_loses_nothing_else(monkeypatch):
    def fail(_name):
        raise ValueError("A dask config file is malformed")

    monkeypatch.setattr(dask_config.importlib, "import_module", fail)
    monkeypatch.setattr(settings, "may_name_headrace", lambda: True)
    with pytest.warns(HeadraceWarning, match=r"dask.config cannot be read.*malformed"):
        assert load_settings(None, {"HEADRACE_RETRIES": "5"}).retries == 5


def test_a_size_with_a_unit_counts_where_a_file_of_dasks_is_malformed(tmp_path):
    program = """
from headrace.settings import current_settings
print(current_settings().buffer_bytes)
"""
    (tmp_path / "broken.yaml").write_text("a: [")
    assert child(program, DASK_CONFIG=str(tmp_path), HEADRACE_BUFFER_BYTES="64MiB") == str(2**26)


def test_without_dask_its_configuration_is_empty(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(dask_config.importlib, "import_module", fail)
    monkeypatch.setattr(settings, "may_name_headrace", lambda: True)
    assert load_settings(None, {"HEADRACE_BUFFER_BYTES": "1024"}).buffer_bytes == 1024


# --- the documentation ---------------------------------------------------------------------------


def _documented() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `(HEADRACE_\w+)` \|(.*)\|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [(name, [cell.strip() for cell in rest.split("|")]) for name, rest in rows]
    return {name: row for name, row in cells if len(row) == 6}  # other tables are narrower


def test_the_documentation_has_every_setting_and_no_other():
    assert list(_documented()) == [spec.variable for spec in SPECS]


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_the_documentation_tells_the_truth(spec):
    _, allowed, default, example, option, key = _documented()[spec.variable]
    assert (option, key) == (f"`{spec.name}`", f"`{spec.dask_key}`")
    unset = getattr(Settings(), spec.name)
    assert load({spec.name: example.strip("`")}) != Settings()
    if unset is not None:
        assert spec.parse(default.strip("`")) == unset
    else:
        assert not default.startswith("`")
    if spec.name in ("scheduler", "local_backend", "cloud_engine", "prefetch", "log"):
        assert allowed.replace("`", "") == spec.allowed
