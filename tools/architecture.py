"""The rooms and their modules in docs/internals/architecture.md, made of docstrings: `python -m tools.architecture`.

`--check` only compares, and fails if the document is not current.
"""

import argparse
import ast
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
DOCUMENT: Final = ROOT / "docs" / "internals" / "architecture.md"
BEGIN: Final = "<!-- made by `python -m tools.architecture` -->\n"
END: Final = "<!-- end of what is made -->\n"
FOLDERS: Final = ("server", "processor")


def first_sentence(path: Path) -> str:
    """Return the summary of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    summary = " ".join(text.split("\n\n")[0].split())
    return summary.partition(". ")[0].rstrip(".:")


def rooms(folder: Path) -> list[Path]:
    """Return the folder and all below it that hold modules, from the top."""
    return sorted({path.parent for path in folder.rglob("*.py")})


def describe(room: Path) -> str:
    """Return a room's part of the document: what it is for, and a table of its modules."""
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    lines = [f"### {room.relative_to(ROOT)}/", "", text, "", "| module | what it holds |", "| --- | --- |"]
    for path in sorted(room.glob("*.py")):
        if path.name != "__init__.py":
            said = first_sentence(path).replace("|", "\\|")
            lines.append(f"| [{path.stem}](../../{path.relative_to(ROOT)}) | {said} |")
    return "\n".join(lines) + "\n"


def made() -> str:
    """Return the part of the document that is made."""
    parts = [describe(room) for folder in FOLDERS for room in rooms(ROOT / folder)]
    return BEGIN + "\n" + "\n".join(parts) + "\n" + END


def replaced(document: str) -> str:
    """Return the document with its made part made anew."""
    before, _, rest = document.partition(BEGIN)
    return before + made() + rest.partition(END)[2]


def main() -> int:
    """Write the document, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 if it is not current")
    wanted = parser.parse_args()
    document = DOCUMENT.read_text()
    current = replaced(document)
    if wanted.check:
        if current != document:
            print(f"{DOCUMENT.relative_to(ROOT)} is not current: run `python -m tools.architecture`", file=sys.stderr)
            return 1
        return 0
    DOCUMENT.write_text(current)
    return 0


if __name__ == "__main__":
    sys.exit(main())
