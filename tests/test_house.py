"""House rules that a reader relies on: imports go one way, and what must start fast imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lawf_repl"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "transformers", "peft", "rich", "prompt_toolkit"}

# A part of the package may import its own level and lower ones.
LEVELS = (
    {"collector", "fits", "records", "rules", "config", "errors", "spans", "conversations", "corrections", "store", "places",
     "processes", "nodes", "beats", "course", "digest", "selection", "chronicle", "lawf_repl"},
    {"engine", "learn", "measure"},
    {"session", "versions", "restore", "agreement", "replay", "export", "bench", "demo"},
    {"cli", "parser", "ui", "report", "verbs", "__main__"},
)
LEVEL = {part: number for number, parts in enumerate(LEVELS) for part in parts}
BANNED = {
    "ui": {"torch", "transformers", "peft"}, "report": {"torch", "transformers", "peft"},
    "engine": {"rich", "prompt_toolkit"}, "learn": {"rich", "prompt_toolkit"}, "measure": {"rich", "prompt_toolkit"},
    **{part: HEAVY for part in LEVELS[0]},
}


def part_of(file: Path) -> str:
    """The module or subpackage of lawf_repl that a file belongs to; lawf_repl/__init__.py is lawf_repl itself."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "lawf_repl" if first == "__init__" else first


def imported(source: str, package: str) -> Iterator[str]:
    """Dotted names of all modules that a source imports, late imports and those for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(file: Path) -> set[str]:
    package = ".".join(("lawf_repl", *file.relative_to(PACKAGE).parts[:-1]))
    return set(imported(file.read_text("utf-8"), package))


def parts_in(names: set[str]) -> set[str]:
    """The parts of lawf_repl among imported names; a value of lawf_repl/__init__.py counts as lawf_repl."""
    second = {name.split(".")[1] for name in names if name.startswith("lawf_repl.")}
    return {part if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file() else "lawf_repl" for part in second}


def test_all_forms_of_import_are_seen() -> None:
    source = "import a.b\nfrom lawf_repl.x import y\ndef f():\n    from . import z\n    from ..c.d import e\nfrom lawf_repl import g"
    assert set(imported(source, "lawf_repl.ui")) == {"a.b", "lawf_repl.x.y", "lawf_repl.ui.z", "lawf_repl.c.d.e", "lawf_repl.g"}


def test_every_part_has_a_level() -> None:
    assert {part_of(file) for file in FILES} <= LEVEL.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_and_never_to_what_is_banned(file: Path) -> None:
    names, part = imports_of(file), part_of(file)
    assert {name.split(".")[0] for name in names} & BANNED.get(part, set()) == set()
    assert {other for other in parts_in(names) if LEVEL[other] > LEVEL[part]} == set()


def test_no_two_parts_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        graph.setdefault(part_of(file), set()).update(parts_in(imports_of(file)) - {part_of(file)})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"parts import each other: {error.args[1]}")


def test_every_folder_with_code_is_a_package() -> None:
    assert [file.parent for file in FILES if not (file.parent / "__init__.py").is_file()] == []


def loaded_by(code: str, said: str = "") -> list[str]:
    """Which heavy modules a fresh interpreter has after running `code`, which says `said` on standard error; what it prints is dropped."""
    whole = f"import sys\n{code}\nprint(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    return done.stderr.splitlines()[-1].split()


def test_a_heavy_module_would_be_noticed() -> None:
    assert loaded_by("import rich") == ["rich"]


@pytest.mark.parametrize("part", sorted(LEVELS[0] - {"lawf_repl"}))
def test_the_lowest_level_loads_nothing_heavy(part: str) -> None:
    assert loaded_by(f"import lawf_repl.{part}") == []


@pytest.mark.skipif(not (PACKAGE / "cli.py").is_file(), reason="there is no cli.py yet")
@pytest.mark.parametrize("argument", [None, "--version", "--help"])
def test_the_command_line_starts_without_anything_heavy(argument: str | None) -> None:
    if argument is None:
        assert loaded_by("import lawf_repl.cli") == []
        return
    run = (f"import runpy\nsys.argv = ['lawf', {argument!r}]\ntry:\n    runpy.run_module('lawf_repl', run_name='__main__')\n"
           "except SystemExit as end:\n    assert not end.code, end.code\nelse:\n    raise AssertionError('it did not end')")
    assert loaded_by(run) == []
