"""What a fresh machine gets: one version, versions that fit each other, commands in the README, and a whole wheel."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lawf_repl import __version__

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
TESTING = [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
PINNED = {canonicalize_name(name): version for name, version in (
    line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#"))}


def blocks(text: str) -> dict[str, list[str]]:
    """The fenced sh blocks under each heading of a Markdown text."""
    found: dict[str, list[str]] = {}
    heading, inside, lines = "", "", list[str]()
    for line in text.splitlines():
        if inside and line.startswith("```"):
            if inside == "sh":
                found.setdefault(heading, []).append("\n".join(lines))
            inside = ""
        elif inside:
            lines.append(line)
        elif line.startswith("```"):
            inside, lines = line[3:].strip() or "text", []
        elif line.startswith("#"):
            heading = line.strip("# ")
    return found


def ci(folder: Path, readme: str) -> subprocess.CompletedProcess[str]:
    """Runs a copy of .ci/run in a folder that holds nothing but a README."""
    (folder / ".ci").mkdir(exist_ok=True)
    shutil.copy2(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "README.md").write_text(readme, "utf-8")
    return subprocess.run([folder / ".ci" / "run"], capture_output=True, text=True, input="not for the block", cwd="/")


@pytest.mark.skipif(not README.is_file(), reason="there is no README.md yet")
@pytest.mark.parametrize("heading", ["Run", "Test"])
def test_the_readme_has_one_command_block_under_its_heading(heading: str) -> None:
    assert len(blocks(README.read_text("utf-8")).get(heading, [])) == 1
    assert len(re.findall(rf"^## {heading}$", README.read_text("utf-8"), re.MULTILINE)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="the script needs bash")
def test_ci_runs_the_test_block_of_the_readme_in_the_clone(tmp_path: Path) -> None:
    readme = "# x\n## Run\n```sh\nexit 9\n```\n## Test\nSo:\n```sh\n## not a heading\necho $PWD; cat\n```\n```sh\nexit 8\n```\n"
    done = ci(tmp_path, readme)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="the script needs bash")
def test_ci_fails_where_the_block_fails_or_is_missing(tmp_path: Path) -> None:
    assert ci(tmp_path, "## Test\n```sh\nfalse\necho on\n```\n").returncode == 1
    missing = ci(tmp_path, "## Run\n```sh\ntrue\n```\n## Test\n```python\n1\n```\n")
    assert missing.returncode == 2 and "expected a fenced sh block" in missing.stderr


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    written = [file for file in (ROOT / "lawf_repl").rglob("*.py")
               for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Constant) and node.value == __version__]
    assert [file.name for file in written] == ["__init__.py"]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("requirement", REQUIRED + TESTING, ids=lambda one: one.name)
def test_every_dependency_is_pinned_to_a_version_that_its_range_admits(requirement: Requirement) -> None:
    pinned = PINNED[canonicalize_name(requirement.name)]
    assert pinned in requirement.specifier and pinned not in Requirement(f"{requirement.name}!={pinned}").specifier
    operators = {one.operator for one in requirement.specifier}
    assert operators == {">=", "<"}, "a range has both ends"


def test_pins_are_plain_versions() -> None:
    assert all(re.fullmatch(r"\d+(\.\d+)*", version) for version in PINNED.values())


def test_what_the_code_imports_is_declared() -> None:
    declared = {one.name.replace("-", "_") for one in REQUIRED} | {"lawf_repl"} | set(sys.stdlib_module_names)
    extras = {Requirement(line).name for name, lines in PROJECT["optional-dependencies"].items() if name != "test" for line in lines}
    extras |= {"llama_cpp"} if "llama-cpp-python" in extras else set()  # the one that is imported by another name
    for file in (ROOT / "lawf_repl").rglob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        tried = {part for node in ast.walk(tree) if isinstance(node, ast.Try) for part in node.body}  # what may be missing is tried
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= declared | (extras if node in tried else set()), file


def test_the_wheel_holds_the_demo_and_the_type_marker(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77.0.3")
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "lawf_repl", clone / "lawf_repl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    (clone / "README.md").write_text("# lawf\n")
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    built = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=clone, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(tmp_path / built.stdout.splitlines()[-1]) as wheel:
        inside = set(wheel.namelist())
        about = f"lawf_repl-{__version__}.dist-info"
        assert "lawf = lawf_repl.cli:main" in wheel.read(f"{about}/entry_points.txt").decode()
        assert "License-Expression: Apache-2.0" in wheel.read(f"{about}/METADATA").decode()
    expected = {file.relative_to(clone).as_posix() for file in (clone / "lawf_repl").rglob("*.py")}
    data = [file for file in (clone / "lawf_repl" / "demo").rglob("*") if file.suffix in (".json", ".jinja", ".safetensors")]
    expected |= {file.relative_to(clone).as_posix() for file in data}
    assert expected | {"lawf_repl/py.typed", f"{about}/licenses/LICENSE"} <= inside
    assert {name.split("/")[0] for name in inside} == {"lawf_repl", about}
