"""What a replay could not repeat may not be called in the rooms it runs in: ruff refuses the calls, not the modules."""

from __future__ import annotations

import inspect
import random
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MODULE = ROOT / "orchestrator" / "workflow" / "replay.py"

FRESH = {
    f"random.{name}"
    for name in random.__all__
    if not inspect.isclass(getattr(random, name)) and name not in ("getstate", "setstate")
}
CLOCKS = {
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "time.perf_counter",
    "time.sleep",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "uuid.uuid1",
    "uuid.uuid4",
    "uuid.uuid7",
}


def test_the_calls_are_banned_by_name() -> None:
    """Protocols §13: ``uuid.uuid1/4/7``, the functions of ``random``, ``datetime.now``, ``time.*``."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    banned = settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert banned.keys() >= FRESH | CLOCKS


def test_the_ban_holds_where_code_is_replayed() -> None:
    """Protocols §13: in the rooms of the workflow each call is refused, and a generator of one's own is fine."""
    calls = "\n".join(f"print({call})" for call in sorted(FRESH | CLOCKS))
    source = f"import datetime\nimport random\nimport time\nimport uuid\n\n{calls}\nprint(random.Random(1))\n"
    argv = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "TID251",
        "--output-format",
        "concise",
        "--no-cache",
    ]
    done = subprocess.run(
        [*argv, "--stdin-filename", str(MODULE), "-"],
        input=source,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    refused = {line.split("`")[1] for line in done.stdout.splitlines() if "TID251" in line}
    assert refused == FRESH | CLOCKS, done.stdout + done.stderr
