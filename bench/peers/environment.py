"""Where the peers are installed: one folder each in ``.local/bench``, with exact versions, apart from our ``.venv``.

Owns: these folders. Does not own: the versions (``requirements-*.txt``, ``package.json``). A folder is made again
when its list of versions has changed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from bench.peers.system import Unavailable

HERE = Path(__file__).parent
APPS = HERE / "apps"
ROOT = HERE.parent.parent / ".local" / "bench"
INSTALL_S = 900.0
TAIL = 800


def python(peer: str) -> Path:
    """The ``bin`` folder of an environment with ``requirements-<peer>.txt``. Raises ``Unavailable``."""
    wanted = HERE / f"requirements-{peer}.txt"
    folder = ROOT / peer
    if not _stale(folder, wanted):
        return folder / "bin"
    _clear(folder)
    _call([sys.executable, "-m", "venv", str(folder)], f"an environment for {peer}")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    _call([*pip, "-r", str(wanted)], f"the packages of {wanted.name}")
    _stamp(folder, wanted)
    return folder / "bin"


def restate_server() -> Path:
    """The server's binary out of its npm package. Raises ``Unavailable``."""
    wanted = HERE / "package.json"
    folder = ROOT / "npm"
    if _stale(folder, wanted):
        npm = shutil.which("npm")
        if npm is None:
            raise Unavailable(
                "there is no npm here (Debian: apt install nodejs npm), and restate-server comes with it"
            )
        _clear(folder)
        folder.mkdir(parents=True)
        shutil.copy(wanted, folder)
        # Without scripts: one of them only reports the installation to its maker.
        _call(
            [npm, "install", "--ignore-scripts", "--no-package-lock", "--prefix", str(folder)],
            "restate-server",
        )
        _stamp(folder, wanted)
    found = sorted(folder.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    if not found:
        raise Unavailable("npm installed restate-server, but it has no binary for this platform")
    return found[0]


def versions(peer: str) -> list[str]:
    """What ``requirements-<peer>.txt`` names."""
    lines = (HERE / f"requirements-{peer}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _stale(folder: Path, wanted: Path) -> bool:
    stamp = folder / ".installed"
    return not stamp.exists() or stamp.read_text() != _digest(folder, wanted)


def _stamp(folder: Path, wanted: Path) -> None:
    (folder / ".installed").write_text(_digest(folder, wanted))


def _digest(folder: Path, wanted: Path) -> str:
    # With the folder's path: an environment that was moved is broken.
    return hashlib.sha256(f"{folder.resolve()} {sys.version}".encode() + wanted.read_bytes()).hexdigest()


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _call(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{what} could not be installed: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-TAIL:]
        raise Unavailable(f"{what} could not be installed ({' '.join(command[:4])} …):\n{said}")
