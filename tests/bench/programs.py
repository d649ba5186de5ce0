"""The processes under measurement: started in directories of their own, watched, stopped without a trace."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from processor.core.kernel.loaded import RUNNING
from processor.log.file_lock import FileLock
from tests.bench import machine
from tests.bench.results import CPU, ELSEWHERE
from tools.tied_process import tied

START_PATIENCE: Final = 60.0
STOP_PATIENCE: Final = 15.0
ROOT: Final = Path(__file__).parents[2]


class Failed(Exception):
    """A process did not do what it was started for; the text ends with what it logged."""


class Skipped(Exception):
    """A row cannot be measured here; the text says what is missing."""


class Program:
    """A process that says on its standard output when it is ready, in one line of JSON. It ends with this one."""

    def __init__(self, arguments: list[str], directory: Path, environment: Mapping[str, str], cpu: int | None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._log = directory / "stderr.log"
        self._name = " ".join(arguments)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SPENDSTREAM_")}
        if RUNNING == "pure":
            clean["SPENDSTREAM_PURE"] = "1"
        with self._log.open("ab") as stderr, _on(cpu):
            self._process = subprocess.Popen(
                tied([sys.executable, *arguments]),
                cwd=ROOT,
                env={**clean, "SPENDSTREAM_CONFIG": os.devnull, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self.pid = self._process.pid

    def line(self) -> dict[str, Any]:
        """The next line of JSON it prints; raises `Failed` if it ends instead."""
        for line in cast(IO[bytes], self._process.stdout):
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict):
                return said
        log = self._log.read_text(errors="replace")[-4000:]
        raise Failed(f"{self._name} ended with {self._process.wait()}:\n{log}")

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        stdin = cast(IO[bytes], self._process.stdin)
        stdin.write(line.encode() + b"\n")
        stdin.flush()

    def end_input(self) -> None:
        """End its standard input."""
        cast(IO[bytes], self._process.stdin).close()

    def signal(self, signum: int) -> None:
        self._process.send_signal(signum)

    def roles(self) -> dict[str, int]:
        """Role -> process id of itself and its children; of a supervisor: supervisor, worker, api, api 2, store, ..."""
        below = machine.children(self.pid)
        if not below:
            return {"": self.pid}
        found = {"supervisor": self.pid}
        for pid in sorted(below):
            role = _role(machine.command_line(pid))
            found[f"{role} {sum(name.startswith(role) for name in found) + 1}" if role in found else role] = pid
        if "store" in found:
            found |= dict(zip(["store's writer"], machine.children(found["store"]), strict=False))
        return found

    def stop(self) -> None:
        """End it, by force if need be."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def running(
    arguments: list[str], directory: Path, environment: Mapping[str, str] | None = None, cpu: int | None = None
) -> Iterator[Program]:
    """A program for the length of a block; `cpu` ties it to one core, where there are two."""
    program = Program(arguments, directory, environment or {}, cpu)
    try:
        yield program
    finally:
        program.stop()


@contextmanager
def stopped_with_log_free(program: Program, data_dir: Path) -> Iterator[None]:
    """The program stands still for the length of a block, and not in the middle of a write."""
    lock = FileLock(data_dir / "log.lock")
    with lock.held():
        program.signal(signal.SIGSTOP)
    lock.close()
    yield
    program.signal(signal.SIGCONT)


def _role(command: list[str]) -> str:
    """What a child of a supervisor does."""
    if "processor.event_store" in command:
        return "store"
    return next((role for word, role in (("processor", "worker"), ("query", "query")) if word in command), "api")


@contextmanager
def _on(cpu: int | None) -> Iterator[None]:
    """What is started in the block runs on that core only."""
    if cpu is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    ours = os.sched_getaffinity(0)
    cores = sorted(ours)
    os.sched_setaffinity(0, {cores[cpu % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


class Meter:
    """CPU time of some processes, and of everything else on the machine, from its making on."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = {**pids, "bench": os.getpid()}
        self._before = self._read()
        self._busy = machine.busy_seconds()

    def _read(self) -> dict[str, float]:
        read = {name: machine.cpu_seconds(pid) for name, pid in self._pids.items()}
        return {name: seconds for name, seconds in read.items() if seconds is not None}

    def figures(self, events: int, seconds: float) -> dict[str, float]:
        """µs of CPU per event of each process, and the share of all cores that went to what is none of ours."""
        spent = {name: now - self._before[name] for name, now in self._read().items()}
        busy = machine.busy_seconds()
        found = {f"{CPU}{name}": 1e6 * took / events for name, took in spent.items() if name != "bench"}
        if busy is not None and self._busy is not None:
            others = busy - self._busy - sum(spent.values())
            found[ELSEWHERE] = max(0.0, 100 * others / seconds / (os.cpu_count() or 1))
        return found
