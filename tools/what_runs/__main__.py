"""Counts which of our own functions run from one plain batch over HTTP until `GET /v1/users` shows it.

A real `serve` on an embedded log, with the compiled kernel where it is built; `sys.settrace` in each of its processes,
from before a connection is opened for the batch to the answer of the read. Import statements and class bodies run at
the start and are not in it. A function counts with all its lines, its docstring and the branches that were not taken
too; beside that stand those lines of it that ran. What runs meanwhile all the time in the same task or thread, such as
looks for new records, is in it: a reader of the path meets that, too. Those tasks and threads that do the same without
any batch are shown apart.
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
from collections.abc import Iterable
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
    lines: range
    """From its first decorator to its end, with its docstring. Those of a function within it are of both."""
    ran: frozenset[int]
    """Lines of it that ran: no docstring, no comment, no branch that was not taken."""
    name: str


class Window(NamedTuple):
    """What ran in a span of time, in all processes."""

    calls: set[Ran]
    lines: dict[Path, set[int]]
    """Whatever function they belong to."""


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


def noted(folder: Path, children: list[int], turn: int) -> Window:
    """Return what ran in these processes since the last turn."""
    for pid in children:
        os.kill(pid, signal.SIGUSR2)
    files = [folder / f"{pid}.{turn}.txt" for pid in children]
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "a process did not say what ran"
        time.sleep(0.1)
    found = Window(set(), defaultdict(set))
    for path, first, name, root, *lines in [row.split("\t") for file in files for row in file.read_text().splitlines()]:
        found.lines[Path(path)].update(map(int, lines))
        if not name.endswith(">"):  # a lambda or a comprehension is a part of its function
            found.calls.add(Ran(Path(path), int(first), name, root))
    return found


def run(folder: Path) -> tuple[Window, Window]:
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
        # What is due every few seconds while events come, such as a checkpoint of the id index, is done with this one.
        asyncio.run(send_and_read(server, 1))
        time.sleep(1)
        noted(folder, children, 2)
        asyncio.run(send_and_read(server, 1))
        return noted(folder, children, 3), idle
    finally:
        server.stop()


def counted(functions: set[Function]) -> str:
    """Return what these are in lines, functions and files."""
    files = len({each.path for each in functions})
    lines, ran = sizes(functions)
    return f"{lines} lines of {len(functions)} functions in {files} files, {ran} of these lines ran"


def sizes(functions: Iterable[Function]) -> tuple[int, int]:
    """Return how many lines these have, and how many of them ran; each line once."""
    lines = {(each.path, line) for each in functions for line in each.lines}
    return len(lines), len({(each.path, line) for each in functions for line in each.ran})


def main(arguments: list[str]) -> int:
    """Print what ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", action="store_true", help="each function that ran, with its lines")
    wanted = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="what-runs-") as folder:
        ran, idle = run(Path(folder))
    # A root that does the same with a batch as without one has nothing to do with it, or only hands it on.
    spine = set(re.findall(r"[A-Z]\w+\.\w+(?=` \|)", THE_PATH.read_text()))
    for_batch = {each.root for each in ran.calls - idle.calls} | spine
    files = {path: lengths(path) for path in {each.path for each in ran.calls}}

    def function(each: Ran) -> Function:
        lines = range(each.first, each.first + files[each.path][each.first])
        return Function(each.path, lines, frozenset(ran.lines[each.path].intersection(lines)), each.name)

    total = {function(each) for each in ran.calls}
    path = {function(each) for each in ran.calls if each.root in for_batch}
    print(f"From a batch to a read: {counted(total)}")
    print(f"For the batch: {counted(path)}")
    for title, functions in (("For the batch", path), ("Beside it, with or without a batch", total - path)):
        print(f"\n{title}: lines, and how many of them ran")
        by_file: dict[Path, list[Function]] = defaultdict(list)
        for each in functions:
            by_file[each.path].append(each)
        for file, found in sorted(by_file.items(), key=lambda item: -sizes(item[1])[0]):
            lines, lines_ran = sizes(found)
            print(f"{lines:6}{lines_ran:6} {file.relative_to(ROOT)}")
            if wanted.functions:
                for each in sorted(found, key=lambda each: (-len(each.lines), each.name)):
                    print(f"     {len(each.lines):6}{len(each.ran):6} {each.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
