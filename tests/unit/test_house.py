"""The house rules that no linter knows: sizes, names, light imports, what may stand where.

Floors and contracts between rooms are import-linter's (``make lint``). There is no list of exceptions here:
a file that is too long is cut, not listed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = [ROOT / "orchestrator", ROOT / "workers"]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FOLDER_MODULES = 12
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "managers", "misc"}
SERVER_LIBRARIES = {
    "alembic", "billiard", "celery", "flower", "kombu", "psycopg", "redis", "sqlalchemy", "tornado",
}  # fmt: skip

HEADER_OF_THE_README = """
from orchestrator import workflow, WorkflowEvent, WorkflowStep, Retries, RollbackContext, NonRetryableError

@workflow
async def transfer(event: WorkflowEvent[dict], step: WorkflowStep) -> str:
    await step.do("debit", lambda: 1, retries=Retries(limit=2, delay="5 seconds"))
    return "done"
"""


def modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in room.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Every function with its line and its length, docstring included, decorators not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1


def loaded_after(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after ``code``."""
    report = "\nimport sys\nprint('\\n'.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"this does not run in a fresh interpreter:\n{code}\n{done.stderr}"
    return set(done.stdout.split())


def complain(rule: str, offenders: list[str]) -> None:
    assert not offenders, f"{rule}:\n  " + "\n  ".join(offenders)


def test_files_are_short() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    complain(
        f"files up to {MAX_FILE_LINES} lines; find the second noun in these and give it a module",
        [f"{name}: {length} lines" for name, length in lengths.items() if length > MAX_FILE_LINES],
    )


def test_functions_are_short() -> None:
    complain(
        f"functions up to {MAX_FUNCTION_LINES} lines, docstring included",
        [
            f"{name_of(path)}:{line} {name}: {length} lines"
            for path in modules()
            for name, line, length in functions(path)
            if length > MAX_FUNCTION_LINES
        ],
    )


def test_folders_are_small() -> None:
    counts: dict[Path, int] = {}
    for path in modules():
        if path.name != "__init__.py":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    complain(
        f"folders up to {MAX_FOLDER_MODULES} modules beside __init__.py",
        [f"{name_of(folder)}: {count}" for folder, count in counts.items() if count > MAX_FOLDER_MODULES],
    )


def test_modules_are_named_for_what_they_own() -> None:
    names = {path: path.parent.name if path.name == "__init__.py" else path.stem for path in modules()}
    complain(
        "one noun per module, in the words of the field",
        [name_of(path) for path, name in names.items() if name.strip("_") in EMPTY_NAMES],
    )


def test_modules_say_what_they_own() -> None:
    complain(
        "every module begins with a docstring",
        [name_of(p) for p in modules() if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))],
    )


@pytest.mark.parametrize("code", ["import orchestrator", HEADER_OF_THE_README], ids=["import", "define"])
def test_defining_a_workflow_loads_no_server_library(code: str) -> None:
    complain("loaded by a mere import of the package", sorted(loaded_after(code) & SERVER_LIBRARIES))


def test_the_name_workflow_means_the_decorator_whatever_was_imported_first() -> None:
    # The package `orchestrator.workflow` and the decorator share a name; importing a submodule of the
    # one must not hide the other.
    loaded_after(
        "import orchestrator.workflow.codec, orchestrator.errors\n"
        "from orchestrator import workflow\n"
        "assert callable(workflow), workflow"
    )


def test_migrations_do_not_shadow_the_library() -> None:
    shadow = ROOT / "alembic" / "__init__.py"
    assert not shadow.exists(), "alembic/__init__.py would hide the alembic library from everything in here"
    assert (ROOT / "alembic" / "env.py").is_file()


def test_the_wheel_holds_the_package_and_the_migrations_only(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False, timeout=110)
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("no package index in reach to fetch hatchling from")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "orchestrator",
        "orchestrator_celery",
    }
    assert "orchestrator/migrations/env.py" in names
    assert any(name.startswith("orchestrator/migrations/versions/") for name in names)
    shipped = {name for name in names if name.startswith("orchestrator/") and "/migrations/" not in name}
    kept = (path for path in (ROOT / "orchestrator").rglob("*") if path.is_file())
    assert shipped == {name_of(path) for path in kept if "__pycache__" not in path.parts}
