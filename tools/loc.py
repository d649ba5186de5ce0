"""Prints how long modules and functions are: `python -m tools.loc [--modules]`. Generated modules do not count."""

import ast
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("processor", "server", "tests", "tools")


def functions(path: Path) -> list[int]:
    nodes = ast.walk(ast.parse(path.read_text(), str(path)))
    wanted = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in wanted]


def main(arguments: list[str]) -> int:
    print(f"{'':12}{'modules':>8}{'lines':>8}{'median':>8}{'longest':>8}{'functions':>11}{'median':>8}{'longest':>8}")
    for folder in FOLDERS:
        paths = sorted(path for path in (ROOT / folder).rglob("*.py") if path.stat().st_size)
        lines = {path: len(path.read_text().splitlines()) for path in paths}
        lengths = [length for path in paths for length in functions(path)]
        if not lines:
            continue
        print(
            f"{folder:12}{len(lines):8}{sum(lines.values()):8}{median(lines.values()):8.0f}{max(lines.values()):8}"
            f"{len(lengths):11}{median(lengths or [0]):8.0f}{max(lengths, default=0):8}"
        )
        if "--modules" in arguments:
            print("\n".join(f"  {count:6} {path.relative_to(ROOT)}" for path, count in lines.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
