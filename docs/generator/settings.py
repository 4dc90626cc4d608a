"""The settings: their variables, types, defaults and meaning, from ``orchestrator.settings``."""

from __future__ import annotations

import dataclasses

import griffe

from docs.generator.api import package, prose
from orchestrator.settings import PREFIX, Settings

INTRODUCTION = """# Settings

`Settings.from_env()` reads them from the environment; `Settings(database_url=…, redis_url=…)` takes the same names in
small letters, without the prefix. Durations are seconds, sizes are bytes; several values are separated by commas.
"""


def page() -> str:
    """The page of the settings."""
    lines = [INTRODUCTION, "| variable | type | default | |", "|---|---|---|---|"]
    for name, field in package()["settings.Settings"].attributes.items():
        if "property" in field.labels or name.startswith("_"):
            continue
        said = (
            prose(field.docstring.value if field.docstring else None).replace("\n", " ").replace("|", "\\|")
        )
        lines.append(f"| `{PREFIX}{name.upper()}` | {_type(field)} | {_default(name)} | {said} |")
    return "\n".join(lines)


def _type(field: griffe.Attribute) -> str:
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        str(field.annotation), "names" if "tuple" in str(field.annotation) else str(field.annotation)
    )


def _default(name: str) -> str:
    (field,) = [each for each in dataclasses.fields(Settings) if each.name == name]
    if field.default is dataclasses.MISSING:
        return "**required**"
    return "" if field.default in ("", (), None) else f"`{field.default}`"
