"""Counts which of our own functions run from one plain batch over HTTP until `GET /v1/users` shows it.

A real `serve` on an embedded log; `sys.setprofile` in each of its processes, from after the start to the answer. What
runs meanwhile all the time, such as looks for new records, is in it: a reader of the path meets that, too. Those tasks
and threads that do the same without any batch are shown apart.
"""

import argparse
import ast
import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Final, NamedTuple

from processor.state.loader import ONE_BY_ONE
from tests.support.clients import reader
from tests.support.events import make_event
from tests.support.server import Server

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
THE_PATH: Final = ROOT / "docs" / "internals" / "the-path.md"
PATIENCE: Final = 20.0
FIRST: Final = ONE_BY_ONE + 1
IDLE: Final = 5.0
"""Seconds without a batch: what is done from time to time is done once in them."""


class Ran(NamedTuple):
    """A function that was called, and by what."""

    path: Path
    first: int
    name: str
    root: str
    """The task, callback or thread in which it ran: the outermost of our functions there."""


class Function(NamedTuple):
    """A function, as it stands in its file."""

    path: Path
    lines: int
    """From its first decorator to its end, with its docstring."""
    name: str


async def send_and_read(server: Server, batches: int) -> None:
    """Send batches one after the other, and read until the table shows them."""
    async with reader(server) as client:
        position = ""
        for _ in range(batches):
            answer = await client.ingest([make_event(user_id=f"user-{number % 3}") for number in range(10)])
            assert answer.status == 202, answer.json
            position = answer.headers["x-ingest-position"]
        await client.get(f"/v1/users?after={position}")


def processes(pid: int) -> list[int]:
    """Return the children of a process."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lengths(path: Path) -> dict[int, int]:
    """Return the first line of each function of a module -> its number of lines."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found[first] = (node.end_lineno or node.lineno) - first + 1
    return found


def noted(folder: Path, children: list[int], turn: int) -> set[Ran]:
    """Return what ran in these processes since the last turn."""
    for pid in children:
        os.kill(pid, signal.SIGUSR2)
    files = [folder / f"{pid}.{turn}.txt" for pid in children]
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "a process did not say what ran"
        time.sleep(0.1)
    rows = [line.split("\t") for file in files for line in file.read_text().splitlines()]
    return {Ran(Path(path), int(first), name, root) for path, first, name, root in rows if not name.endswith(">")}


def run(folder: Path) -> tuple[set[Ran], set[Ran]]:
    """Return what ran for a batch, and what ran in a while without one."""
    variables = {"PYTHONPATH": f"{HERE}:{ROOT}", "WHAT_RUNS_ROOT": str(ROOT), "WHAT_RUNS_FOLDER": str(folder)}
    os.environ.update(variables)
    server = Server(folder / "data")
    server.start(60)
    try:
        # Often before: what is done once only, or of the first messages after a start, is not of the path.
        asyncio.run(send_and_read(server, FIRST))
        children = processes(server.process.pid)
        time.sleep(1)
        noted(folder, children, 0)
        time.sleep(IDLE)
        idle = noted(folder, children, 1)
        time.sleep(0.2)
        asyncio.run(send_and_read(server, 1))
        return noted(folder, children, 2), idle
    finally:
        server.stop()


def counted(functions: set[Function]) -> str:
    """Return what these are in lines, functions and files."""
    lines = sum(each.lines for each in functions)
    return f"{lines} lines of {len(functions)} functions in {len({each.path for each in functions})} files"


def main(arguments: list[str]) -> int:
    """Print what ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", action="store_true", help="each function that ran, with its lines")
    wanted = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="what-runs-") as folder:
        ran, idle = run(Path(folder))
    # A root that does the same with a batch as without one has nothing to do with it, or only hands it on.
    for_batch = {each.root for each in ran - idle} | set(re.findall(r"[A-Z]\w+\.\w+(?=` \|)", THE_PATH.read_text()))
    files = {path: lengths(path) for path in {each.path for each in ran}}
    total = {Function(each.path, files[each.path][each.first], each.name) for each in ran}
    path = {Function(each.path, files[each.path][each.first], each.name) for each in ran if each.root in for_batch}
    print(f"{counted(total)} run from a batch to a read")
    print(f"{counted(path)} of them for the batch")
    for title, functions in (("For the batch", path), ("Beside it, with or without a batch", total - path)):
        print(f"\n{title}:")
        by_file: dict[Path, list[Function]] = defaultdict(list)
        for each in functions:
            by_file[each.path].append(each)
        for file, found in sorted(by_file.items(), key=lambda item: -sum(each.lines for each in item[1])):
            print(f"{sum(each.lines for each in found):6} {file.relative_to(ROOT)}")
            if wanted.functions:
                for each in sorted(found, key=lambda each: (-each.lines, each.name)):
                    print(f"       {each.lines:5} {each.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
