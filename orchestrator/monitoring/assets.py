"""Style sheets and scripts of the pages.

Owns: what each is, and its version. Does not own: handing them out (``pages.assets``), nor those of diagrams, which
are files here (``diagrams.render``).
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

from orchestrator.diagrams.render.script import SCRIPT
from orchestrator.diagrams.render.style import STYLE

_FOLDER = Path(__file__).with_name("static")
_DRAWN = {"diagram.css": STYLE, "diagram.js": SCRIPT}
TYPES = {".css": "text/css; charset=UTF-8", ".js": "text/javascript; charset=UTF-8"}


@cache
def content(name: str) -> bytes | None:
    """The asset, or ``None`` if there is none of that name."""
    if name in _DRAWN:
        return _DRAWN[name].encode()
    path = _FOLDER / name
    return path.read_bytes() if path.parent == _FOLDER and path.suffix in TYPES and path.is_file() else None


@cache
def version(name: str) -> str:
    """Ten characters that change with the content."""
    return sha256(content(name) or b"").hexdigest()[:10]
