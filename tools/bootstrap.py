"""Makes .venv from the committed locks: `python -m tools.bootstrap run|dev`.

`run` installs what serving needs, `dev` everything. Needs only the standard library and pip, and whatever Python 3.11
or newer runs it; for `dev`, whose lock has uv, uv installs the rest of it in a tenth of the time. A stamp in .venv has
a digest of what went in, so a second call costs a few hundredths of a second. The compiled kernel is built beside its
source where there is a C compiler (tools/build_kernel.py); everything works without one.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"

# The lock of `dev` has every pin of the others (tools/lock.py checks it), so that installing `dev` also serves `run`.
LOCKS = {"run": ["runtime.txt", "build.txt"], "dev": ["dev.txt"]}
KERNEL = sorted((ROOT / "processor" / "core" / "kernel").glob("*.p[xy][xi]"))
"""What the compiled kernel is made from."""
QUIET = ["--quiet", "--disable-pip-version-check", "--no-input"]
INCLUDES = {"run": ["run"], "dev": ["run", "dev"]}


def locks(level: str) -> list[Path]:
    return [ROOT / "requirements" / name for name in LOCKS[level]]


def digest(level: str) -> str:
    """Of all that decides what .venv holds; its path too, because a virtual environment cannot move."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    pure = os.environ.get("SPENDSTREAM_PURE")
    content = hashlib.sha256(f"{ROOT}\n{sys.version}\n{compiler}\n{pure}\n".encode())
    for path in [*locks(level), ROOT / "pyproject.toml", ROOT / "tools" / "build_kernel.py", *KERNEL]:
        content.update(path.read_bytes())
    return content.hexdigest()


def stamp(level: str) -> Path:
    return VENV / f"stamp-{level}"


def is_ready(level: str) -> bool:
    return PYTHON.exists() and stamp(level).exists() and stamp(level).read_text() == digest(level)


def has_this_python() -> bool:
    """Whether .venv exists, works and was made by the Python that runs this."""
    if not PYTHON.exists():
        return False
    answer = subprocess.run([str(PYTHON), "-c", "import sys; print(sys.version)"], capture_output=True, check=False)
    return answer.stdout.decode().strip() == sys.version.strip()


def pip(*arguments: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    subprocess.run([str(PYTHON), "-m", "pip", *arguments], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)


def by_uv() -> bool:
    """Install the lock of `dev` by uv, which pip installs first; False where only pip has been told of a mirror."""
    lock = ROOT / "requirements" / "dev.txt"
    pinned = re.search(r"^uv==.*?(?=^\S)", lock.read_text(), re.MULTILINE | re.DOTALL)
    if pinned is None:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        only = Path(scratch) / "uv.txt"
        only.write_text(pinned[0])
        pip("install", *QUIET, "--require-hashes", "-r", str(only))
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--quiet", "--compile-bytecode", "--python", str(PYTHON)]
    done = subprocess.run([*command, "--require-hashes", "-r", str(lock)], cwd=ROOT, check=False, stdout=sys.stderr)
    return done.returncode == 0


def install(level: str) -> None:
    began = time.monotonic()
    print(f"Setting up .venv ({level}): up to a minute the first time.", file=sys.stderr)
    if not has_this_python():
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, stdout=sys.stderr)
    if level != "dev" or not by_uv():
        wanted = [argument for path in locks(level) for argument in ("-r", str(path))]
        pip("install", *QUIET, "--require-hashes", *wanted)
    pip("install", *QUIET, "--no-deps", "--no-build-isolation", "--editable", ".")
    for included in INCLUDES[level]:
        stamp(included).write_text(digest(included))
    print(f"Set up in {time.monotonic() - began:.0f} s{which_kernel()}.", file=sys.stderr)


def which_kernel() -> str:
    """Words about the kernel, if it is not there: what `pip` installs, it installs silently."""
    asked = "from processor.core.kernel.loaded import RUNNING; print(RUNNING)"
    answer = subprocess.run([str(PYTHON), "-c", asked], cwd=ROOT, capture_output=True, check=False)
    if answer.stdout.strip() == b"compiled":
        return ""
    return ", without the compiled kernel: there is no C compiler, no Python.h, or SPENDSTREAM_PURE=1"


def main(level: str) -> int:
    if is_ready(level):
        return 0
    with (ROOT / ".venv.lock").open("w") as guard:  # two terminals, one set-up
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not is_ready(level):
            try:
                install(level)
            except subprocess.CalledProcessError as error:
                print(f"Set-up failed: {' '.join(error.cmd)}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  # PYTHON=... may name any
        sys.exit(f"spendstream needs Python 3.11 or newer, this is {sys.version.split()[0]}.")
    sys.exit(main(sys.argv[1]))
