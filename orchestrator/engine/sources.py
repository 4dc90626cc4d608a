"""The sources that a diagram is drawn from.

Owns: finding the text of a workflow's module, and of the modules that it names, without importing any. Does not own
what is drawn (``diagrams``).
"""

from __future__ import annotations

import inspect
import linecache
import sys
from importlib.machinery import ModuleSpec

from orchestrator.diagrams.nodes import Json
from orchestrator.diagrams.parser import parse
from orchestrator.diagrams.parsing.sources import Source
from orchestrator.errors import InvalidConfig
from orchestrator.workflow.language.definition import Definition


def diagram(definition: Definition) -> Json:
    """The graph of a workflow, from its source. Raises ``InvalidConfig`` if there is no source."""
    function = inspect.unwrap(definition.function)
    text = "".join(linecache.getlines(definition.source_file, getattr(function, "__globals__", None)))
    if not text:
        raise InvalidConfig(
            f"workflow {definition.name!r} cannot be drawn: its source {definition.source_file!r} cannot be read"
        )
    module = definition.fn.__module__
    source = Source(module, text, is_package=hasattr(sys.modules.get(module), "__path__"))
    line = None if definition.is_class else function.__code__.co_firstlineno
    target = definition.fn if definition.is_class else function
    return parse(source, target.__qualname__, line=line, find=find)


def find(name: str) -> Source | None:
    """The source of a module where an import would find it; ``None`` for the standard library."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return None
    spec = _spec(name)
    reader = getattr(spec.loader, "get_source", None) if spec is not None else None
    if spec is None or reader is None:
        return None
    try:
        text = reader(name)
    except (ImportError, OSError, SyntaxError, UnicodeError):
        return None
    return Source(name, text, spec.submodule_search_locations is not None) if text else None


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is. Unlike ``importlib.util.find_spec`` this imports no package on the way."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if isinstance(loaded, ModuleSpec):
        return loaded
    parent = name.rpartition(".")[0]
    path = None
    if parent:
        above = _spec(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        path = list(above.submodule_search_locations)
    for finder in sys.meta_path:
        search = getattr(finder, "find_spec", None)
        found = search(name, path) if search is not None else None
        if isinstance(found, ModuleSpec):
            return found
    return None
