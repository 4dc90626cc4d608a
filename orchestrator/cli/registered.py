"""The workflows that ``ORCHESTRATOR_WORKFLOWS`` names, as a command addresses them.

Owns: importing those modules, and finding a workflow by name. Does not own the registry (``workflow``).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path

from orchestrator.client.workflow import Workflow
from orchestrator.errors import InvalidConfig, OrchestratorError
from orchestrator.settings import PREFIX
from orchestrator.workflow.language.definition import registry


def load() -> None:
    """Import the modules. Raises ``InvalidConfig`` if none is named, or one cannot be imported."""
    from orchestrator.dispatch import celery_app

    variable = PREFIX + "WORKFLOWS"
    modules = [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]
    if not modules:
        raise InvalidConfig(
            f"Set {variable} to the modules that define workflows, separated by commas "
            "(orchestrator.demo.workflows is one)."
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # where a worker finds them too
    for module in modules:
        with contextlib.redirect_stdout(sys.stderr):  # what they print is no part of the answer
            try:
                celery_app.load(module)
            except OrchestratorError:
                raise
            except Exception as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                raise InvalidConfig(
                    f"{variable} names the module {module!r}, which fails in {at.filename}, line {at.lineno}: "
                    f"{type(error).__name__}: {error}"
                ) from error


def all_workflows() -> list[Workflow]:
    """Every registered workflow and version, by name."""
    load()
    return [Workflow(registry.get(name, version)) for name, version in registry.known()]


def by_name(name: str) -> Workflow:
    """The version of that name that was registered last. Raises ``UnknownWorkflow``, which lists what is known."""
    load()
    return Workflow(registry.latest(name))
