"""The environments of real OTLP clients, made once: Python's instrumentations and JavaScript's.

They are kept in `.otlp/` in the checkout, or where SPENDSTREAM_OTLP_HOME says, apart from `.venv`: what they need goes
by its own versions. requirements/otlp-clients*.txt and package-lock.json have all of it, with hashes.

As a program: `python -m tools.otlp_clients` makes them and prints where they are.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
HOME: Final = Path(os.environ.get("SPENDSTREAM_OTLP_HOME") or ROOT / ".otlp").absolute()
"""Where the environments are kept; read once, when the program starts."""

LOCKS: Final = ROOT / "requirements"
PROGRAMS: Final = ROOT / "tests" / "otlp_clients"
PATIENCE: Final = 900.0
"""Seconds for each command that makes an environment."""


class NoClients(Exception):
    """This machine cannot make an environment; the text says what is missing."""


def python_client(*, is_older: bool = False) -> list[str]:
    """The command that runs app.py in its environment, which is made first: 400 MB. Raises `NoClients`.

    `is_older` is the small environment of opentelemetry-instrumentation-openai-v2, which needs older packages.
    """
    name = "otlp-clients-older" if is_older else "otlp-clients"
    lock = LOCKS / f"{name}.txt"
    made = made_once(name.replace("otlp-clients", "python"), [lock], lambda directory: _make_python(directory, lock))
    return [str(made / "bin" / "python"), str(PROGRAMS / "app.py")]


def javascript_client(*, is_older: bool = False) -> list[str]:
    """The command that runs app.mjs with its packages, which are brought first: 60 MB. Raises `NoClients`.

    `is_older` is the one with versions 4 and 5 of the Vercel AI SDK, which is only needed to record what they send.
    """
    name = "js-older" if is_older else "js"
    sources = [PROGRAMS / name / each for each in ("package.json", "package-lock.json")]
    made = made_once(name, sources, lambda directory: _make_javascript(directory, sources))
    program = made / "app.mjs"  # Node looks for packages beside the program
    text = (PROGRAMS / name / "app.mjs").read_text()
    if not program.exists() or program.read_text() != text:
        program.write_text(text)
    return ["node", str(program)]


def made_once(name: str, from_files: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """The directory that `make` made of these files, and that is whole; two programs that ask at once make it once."""
    content = hashlib.sha256(b"".join(path.read_bytes() for path in from_files) + sys.version.encode())
    directory = HOME / f"{name}-{content.hexdigest()[:12]}"
    stamp = directory / "whole"
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / f"{name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not stamp.exists():
            print(f"Making {directory} (once) ...", file=sys.stderr)
            shutil.rmtree(directory, ignore_errors=True)
            make(directory)
            stamp.touch()
    return directory


def _make_python(directory: Path, lock: Path) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    _run([uv, "venv", "--quiet", "--no-config", "--python", sys.executable, str(directory)])
    at = ["--python", str(directory / "bin" / "python")]
    try:
        _run([uv, "pip", "install", "--quiet", *at, "--require-hashes", "-r", str(lock)])
    except NoClients:  # where only pip has been told of a mirror
        pip = [sys.executable, "-m", "pip", *at, "--quiet", "--disable-pip-version-check"]
        _run([*pip, "install", "--require-hashes", "-r", str(lock)])


def _make_javascript(directory: Path, sources: Sequence[Path]) -> None:
    if shutil.which("npm") is None:
        raise NoClients("JavaScript's clients need Node 20 or newer with npm (Debian: apt-get install nodejs npm)")
    directory.mkdir()
    for source in sources:
        shutil.copyfile(source, directory / source.name)
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(directory)])


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoClients(f"an environment could not be made: {error}") from None
    if done.returncode:
        raise NoClients(f"{' '.join(command[:4])} failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def main() -> int:
    """Make all environments but the older JavaScript one, and print what runs their programs."""
    try:
        print(" ".join(python_client()))
        print(" ".join(python_client(is_older=True)))
        print(" ".join(javascript_client()))
    except NoClients as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
