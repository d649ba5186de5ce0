"""Counts which of our own functions run from one plain batch over HTTP until `GET /v1/users` shows it.

A real `serve` on an embedded log; `sys.setprofile` in each of its processes, from after the start to the answer. What
runs meanwhile all the time, such as looks for new records, is in it: a reader of the path meets that, too.
"""

import argparse
import ast
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

import aiohttp

from tests.support.events import make_event, to_ndjson
from tests.support.server import Server

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
OURS: Final = ("server", "processor")
PATIENCE: Final = 20.0


async def send_and_read(server: Server) -> None:
    """Send one batch, and read until the table shows it."""
    headers = {"x-api-key": server.key, "Content-Type": "application/x-ndjson"}
    async with aiohttp.ClientSession(f"http://{server.http}", headers=headers) as session:
        events = [make_event(user_id=f"user-{number % 3}") for number in range(10)]
        async with session.post("/v1/ingest", data=to_ndjson(events)) as response:
            assert response.status == 202, await response.text()
            position = response.headers["x-ingest-position"]
        async with session.get("/v1/users", params={"after": position}) as response:
            await response.read()


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


def run(folder: Path) -> set[tuple[Path, int, str]]:
    """Return the functions that ran: file, first line, name."""
    variables = {"PYTHONPATH": f"{HERE}:{ROOT}", "WHAT_RUNS_ROOT": str(ROOT), "WHAT_RUNS_FOLDER": str(folder)}
    os.environ.update(variables)
    server = Server(folder / "data")
    server.start(60)
    try:
        asyncio.run(send_and_read(server))  # once before: what is done once only is not of the path
        children = processes(server.process.pid)
        for pid in children:
            os.kill(pid, signal.SIGUSR1)
        time.sleep(0.2)
        asyncio.run(send_and_read(server))
        for pid in children:
            os.kill(pid, signal.SIGUSR2)
        deadline = time.monotonic() + PATIENCE
        while len(files := list(folder.glob("*.txt"))) < len(children) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(files) == len(children), "a process did not say what ran"
    finally:
        server.stop()
    rows = {tuple(line.split("\t")) for file in files for line in file.read_text().splitlines()}
    return {(Path(path), int(first), name) for path, first, name in rows if not name.endswith(">")}


def main(arguments: list[str]) -> int:
    """Print what ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", action="store_true", help="each function that ran, with its lines")
    wanted = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="what-runs-") as folder:
        ran = run(Path(folder))
    by_file: dict[Path, list[tuple[int, str]]] = defaultdict(list)
    for path, first, name in ran:
        if path.relative_to(ROOT).parts[0] in OURS:
            length = lengths(path).get(first)
            if length is not None:
                by_file[path].append((length, name))
    total = sum(length for found in by_file.values() for length, _ in found)
    functions = sum(map(len, by_file.values()))
    print(f"{total} lines of {functions} functions in {len(by_file)} files")
    for path, found in sorted(by_file.items(), key=lambda item: -sum(length for length, _ in item[1])):
        print(f"{sum(length for length, _ in found):6} {path.relative_to(ROOT)}")
        if wanted.functions:
            for length, name in sorted(found, reverse=True):
                print(f"       {length:5} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
