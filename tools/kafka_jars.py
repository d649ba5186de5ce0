"""Kafka's own jars, brought once by Maven into a cache directory, and the Java that runs them.

The cache is `.kafka/` in the checkout, or the directory that SPENDSTREAM_KAFKA_HOME names. tools/kafka.pom.xml has the
versions; Maven checks what it brings against the checksums published beside it.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
POM: Final = ROOT / "tools" / "kafka.pom.xml"

HOME_VARIABLE: Final = "SPENDSTREAM_KAFKA_HOME"
HOME: Final = Path(os.environ.get(HOME_VARIABLE) or ROOT / ".kafka").absolute()
"""Where the jars are kept; read once, when the program starts."""

MIN_JAVA: Final = 17


class NoKafka(Exception):
    """This machine cannot run a broker; the text says what to install."""


@cache
def java() -> str:
    """The Java to use: that of JAVA_HOME, or the one on PATH. Raises `NoKafka` if there is none, or an old one."""
    wanted = f"Kafka needs Java {MIN_JAVA} or newer (Debian: apt-get install openjdk-17-jre-headless)"
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin") if home else None)
    if found is None:
        raise NoKafka(f"{wanted}: there is no `java` {'in JAVA_HOME' if home else 'on PATH'}")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < MIN_JAVA:
        raise NoKafka(f"{wanted}: {found} is {version[1] if version else 'no working Java'}")
    return found


def jars(home: Path = HOME, pom: Path = POM) -> Path:
    """The directory of the jars, brought first if they are not there; may take minutes. Raises `NoKafka`.

    Two programs that ask at once bring them once. A directory that is there is whole: it gets its name last.
    """
    ready = home / f"jars-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if ready.is_dir():
        return ready
    home.mkdir(parents=True, exist_ok=True)
    with (home / "jars.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not ready.is_dir():
            _fetch(pom, home / "jars.part", ready)
    return ready


def _fetch(pom: Path, part: Path, ready: Path) -> None:
    java()
    maven = shutil.which("mvn")
    if maven is None:
        raise NoKafka("Maven brings Kafka's jars (Debian: apt-get install maven): there is no `mvn` on PATH")
    print(f"Bringing Kafka's jars into {ready.parent} with Maven (some 40 MB, once) ...", file=sys.stderr)
    shutil.rmtree(part, ignore_errors=True)
    quiet = ["--batch-mode", "--quiet", "--strict-checksums"]
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={part}"]
    done = subprocess.run([maven, *quiet, "--file", str(pom), *goal], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoKafka(f"Maven could not bring Kafka's jars:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    part.rename(ready)
    print(f"Kafka's jars are there: {len(list(ready.iterdir()))} files.", file=sys.stderr)


def class_archive(home: Path = HOME) -> Path:
    """The file of classes that Java has loaded and checked once (AppCDS); it may not be there yet.

    With it a broker's start costs 1.2 CPU seconds instead of 2.5.
    It belongs to these jars at this place and to this Java; `tools.kafka.make_archive` makes it.
    """
    of = f"{jars(home)} {Path(java()).resolve()}"
    return home / f"classes-{hashlib.sha256(of.encode()).hexdigest()[:12]}.jsa"
