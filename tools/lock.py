"""Writes requirements/ from pyproject.toml, or checks that they agree: `python -m tools.lock [--upgrade|--check]`.

Every pin has hashes and no file names an index, so that a lock installs from any mirror with `pip install
--require-hashes -r`. Checking needs no network: it compares what pyproject.toml asks for, what the locks pin, and what
the installed packages themselves require.
"""

import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
# dev first: the other two are held to its versions. `None` is the project's own dependencies.
FILES: dict[str, list[str | None]] = {"dev.txt": [None, "dev"], "runtime.txt": [None], "build.txt": ["build"]}
# Of environments of their own, with versions of their own, which are not installed where this runs.
APART = {f"{group}.txt": group for group in ("otlp-clients", "otlp-clients-older")}


def compile_lock(name: str, upgrade: bool) -> None:
    groups = [APART[name]] if name in APART else FILES[name]
    wanted = [part for group in groups for part in (["--group", group] if group else ["pyproject.toml"])]
    bound = [] if name == "dev.txt" or name in APART else ["--constraint", "requirements/dev.txt"]
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", "--no-config"]
    portable = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url"]
    words = ["--no-emit-find-links", "--custom-compile-command", "make lock", *(["--upgrade"] if upgrade else [])]
    command = [*uv, *portable, *words, *bound, *wanted, "--output-file", f"requirements/{name}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


class Lock:
    """One requirements file: its pins, and what is wrong with it as text."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.pins: dict[str, list[Requirement]] = defaultdict(list)
        self.faults: list[str] = []
        text = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        for line in filter(None, map(str.strip, text.splitlines())):
            pin, *hashes = line.split(" --hash=")
            if "://" in line or line.startswith("-"):
                self.faults.append(f"{self.name} names a place: {line:.100}")
                continue
            requirement = Requirement(pin)
            self.pins[canonicalize_name(requirement.name)].append(requirement)
            if not hashes or not all(each.strip().startswith("sha256:") for each in hashes):
                self.faults.append(f"{self.name}: {requirement.name} has no hash")

    def versions(self, name: str) -> set[str]:
        return {spec.version for pin in self.pins.get(name, []) for spec in pin.specifier if spec.operator == "=="}

    def here(self) -> set[str]:
        """The names that this lock installs on this machine."""
        return {name for name, pins in self.pins.items() if any(applies(pin) for pin in pins)}


def applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def group_members(groups: dict[str, Any], name: str) -> Iterator[Requirement]:
    for member in groups[name]:
        if isinstance(member, str):
            yield Requirement(member)
        else:
            yield from group_members(groups, member["include-group"])


def closure(roots: Iterable[Requirement]) -> set[str]:
    """Names of all packages that `roots` bring on this machine, by the metadata of what is installed."""
    seen: set[tuple[str, str]] = set()
    queue = [root for root in roots if applies(root)]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            needed = map(Requirement, metadata.requires(name) or [])
            queue += [each for each in needed if applies(each, extra)]
    return {name for name, _ in seen}


def misfits(lock: Lock, declared: Iterable[Requirement]) -> Iterator[str]:
    """What pyproject.toml asks for and the lock does not pin so."""
    for requirement in declared:
        versions = lock.versions(canonicalize_name(requirement.name))
        if not versions or not all(requirement.specifier.contains(version) for version in versions):
            pinned_as = " and ".join(sorted(versions)) or "no version"
            yield f"{lock.name} pins {pinned_as} where pyproject.toml asks for {requirement}"


def faults() -> list[str]:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = pyproject["dependency-groups"]
    locks = {name: Lock(LOCKS / name) for name in FILES}
    own = [Requirement(each) for each in pyproject["project"]["dependencies"]]
    found = [fault for lock in locks.values() for fault in lock.faults]
    for name, apart_group in APART.items():
        apart = Lock(LOCKS / name)
        found += [*apart.faults, *misfits(apart, group_members(groups, apart_group))]
    if groups["build"] != pyproject["build-system"]["requires"]:
        found.append("pyproject.toml: dependency group build and build-system.requires differ")
    for name, lock in locks.items():
        declared: list[Requirement] = []
        for group in FILES[name]:
            declared += group_members(groups, group) if group else own
        found += misfits(lock, declared)
        try:
            needed = closure(declared)
        except metadata.PackageNotFoundError as error:
            found.append(f"{name}: {error.name} is needed but not installed (make setup)")
            continue
        found += [f"{name} lacks {missing}, which is needed" for missing in sorted(needed - lock.here())]
        found += [f"{name} pins {extra}, which nothing needs" for extra in sorted(lock.here() - needed)]
        for pinned in lock.pins:
            if not lock.versions(pinned) <= locks["dev.txt"].versions(pinned):
                found.append(f"{name} and dev.txt pin different versions of {pinned}")
    return found


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        LOCKS.mkdir(exist_ok=True)
        for name in [*FILES, *APART]:
            compile_lock(name, upgrade="--upgrade" in arguments)
        print("Locked. `make setup` installs it.")
        return 0
    found = faults()
    print("\n".join([*found, "`make lock` mends it."]) if found else "The locks agree with pyproject.toml.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
