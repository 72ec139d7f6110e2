"""The wheel is the source tree, and works in an environment that has nothing but the wheel.

The source distribution has what the README speaks of besides.

A subpackage missing from ``packages`` in pyproject.toml imports in an editable install and is not
in the wheel, so the folders are compared with the built wheel, and the wheel is then installed
into a fresh environment and run from an empty folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"plugin": "headrace", "backends": "headrace/backends"}
FOLDERS["integrations"] = "headrace/integrations"


def run(*command: object, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command without the variables that would let the source tree in."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=variables | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr}"
    return done.stdout


def test_every_size_of_the_full_run_is_in_the_readme() -> None:
    sizes = re.compile(r'os\.environ\.get\(\s*"(HEADRACE_TEST_[A-Z_]+)"')
    read = {name for path in (ROOT / "tests").rglob("*.py") for name in sizes.findall(path.read_text())}
    readme = (ROOT / "README.md").read_text()
    assert read, "the tests read none"
    assert not {name for name in read if f"{name}=" not in readme}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    # A copy, since setuptools takes up whatever an earlier build left in build/.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in FOLDERS:
        for path in _sources(name):
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps")
    run(*pip, "--wheel-dir", folder, source, cwd=folder)
    [built] = folder.glob("headrace-*.whl")
    return built


def _sources(folder: str) -> list[Path]:
    found = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in found if path.suffix == ".py" or path.name == "py.typed"]


def test_the_source_distribution_has_what_the_readme_speaks_of(tmp_path: Path) -> None:
    named = set(re.findall(r"\]\(([\w./-]+)\)", (ROOT / "README.md").read_text()))
    assert {"CHANGELOG.md", "docs/architecture.md"} <= named
    wanted = {*named, ".ci/run", "tests/conftest.py", "benchmarks/cloud.py", "plugin/py.typed"}
    ignored = shutil.ignore_patterns(".[!c]*", "build", "*.egg-info", "__pycache__")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=source)
    [built] = tmp_path.glob("headrace-*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert wanted <= names | {"."}


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of programs of an environment with the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    uv = (sys.executable, "-m", "uv", "pip", "install", "-q")
    run(*uv, "--python", programs / "python", wheel, cwd=folder)
    return programs


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def test_wheel_holds_every_source_file_and_no_other(wheel: Path):
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in _sources(folder)
    }
    names = zipfile.ZipFile(wheel).namelist()
    found = {name for name in names if ".dist-info/" not in name}
    assert found == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_module_imports_from_the_wheel(installed: Path, wheel: Path, elsewhere: Path):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    modules = sorted(name.removesuffix(".py").removesuffix("/__init__") for name in names)
    optional = ("headrace/__main__", "headrace/testing")
    wanted = [name.replace("/", ".") for name in modules if not name.startswith(optional)]
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    code += "; import headrace; print(headrace.__file__)"
    printed = run(installed / "python", "-I", "-c", code, *wanted, cwd=elsewhere)
    assert str(installed.parent) in printed


def test_entry_points_load_from_the_wheel(installed: Path, elsewhere: Path):
    code = """if True:
        from importlib.metadata import entry_points
        for group in ("fsspec.specs", "headrace.backends"):
            for point in entry_points(group=group):
                if point.value.startswith("headrace"):
                    point.load()
                    print(group, point.name)
        """
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    expected = {f"{group} {name}" for group, points in declared.items() for name in points}
    assert set(run(installed / "python", "-I", "-c", code, cwd=elsewhere).splitlines()) == expected


def test_chained_url_reads_from_the_wheel(installed: Path, elsewhere: Path):
    (elsewhere / "hello.txt").write_bytes(b"water")
    code = "import fsspec, sys; print(fsspec.open(sys.argv[1]).open().read().decode())"
    url = f"headrace::file://{elsewhere / 'hello.txt'}"
    assert run(installed / "python", "-I", "-c", code, url, cwd=elsewhere).strip() == "water"


def test_command_line_runs_from_the_wheel(installed: Path, elsewhere: Path):
    assert "scan" in run(installed / "headrace", "--help", cwd=elsewhere)
    version = run(installed / "headrace", "--version", cwd=elsewhere)
    assert re.fullmatch(r"headrace \d+\.\d+\.\d+\n", version)


def test_the_readme_test_command_is_there_once():
    """The gate takes the command from the README by this pattern."""
    pattern = r"^python3 -m venv .*&& \.venv/bin/python -m pytest"
    assert len(re.findall(pattern, (ROOT / "README.md").read_text(), re.MULTILINE)) == 1
