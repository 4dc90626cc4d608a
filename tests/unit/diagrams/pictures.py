"""Pictures in a real browser: a page that holds them, and what stands there after a script has run.

Owns: finding the browser and running it. Does not own any test.
"""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SVG = "{http://www.w3.org/2000/svg}"

Dump = Callable[[str, str], str]


def needs_browser(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that a browser runs."""
    reason = "needs Chromium: apt install chromium"
    return pytest.mark.browser(pytest.mark.skipif(BROWSER is None, reason=reason)(test))


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    """The page that holds a picture, after a script has run in it."""

    def page(picture: str, script: str) -> str:
        path = tmp_path / "page.html"
        path.write_text(f"<!doctype html><body>{picture}<script>{textwrap.dedent(script)}</script>", "utf-8")
        command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
        return done.stdout

    return page


def styled(picture: str, theme: str) -> str:
    """The picture in a theme, whatever the reader prefers."""
    return picture.replace("<svg ", f'<svg data-theme="{theme}" ', 1)
