"""Real processes of the product, each started in a session of its own, with the means to kill any of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal, cast

from tests.support import cli_host
from tests.support.patience import PROCESS_PATIENCE
from tests.support.ports import next_bind

KEY: Final = "lqt_" + "5" * 64
"""The bootstrap key of servers that are started with one."""

Part = Literal["supervisor", "api", "worker", "store", "query", "api-0", "api-1"]

USUAL: Final = {"SPENDSTREAM_EVENT_STORE": "off", "SPENDSTREAM_STORE_MIN_FREE": "0"}
"""Most tests need no event store, and no machine of theirs is to have gigabytes free."""

KEPT_FOR_COMMANDS: Final = ("broker", "kafka_prefix", "event_store", "store_dir")
"""Settings of a server that commands on its data directory are given, too."""

AT_START: Final = frozenset({"LD_PRELOAD"})
"""Variables that change a process as it starts."""

FORKED: Final = "PYTEST_VERSION" in os.environ
"""In a test the roles are forked, too (see `cli_host`), but where `as_shipped` says otherwise."""

_COMMANDS: Final[dict[str, list[str]]] = {
    "serve": ["-m", "server", "serve"],
    "api": ["-m", "server", "api"],
    "worker": ["-m", "server", "worker"],
    "store": ["-m", "server", "store"],
}


class NotReady(Exception):
    """A process ended, or said nothing, before it was ready; the text has its exit code and what it logged."""


def environment(data_dir: Path, settings: Mapping[str, object] | None = None) -> dict[str, str]:
    """The environment of a process of the product: this one's without its settings, and `settings` by variable."""
    ours = {name for name in os.environ if name.startswith("SPENDSTREAM_")} - {"SPENDSTREAM_PURE"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    given = {f"SPENDSTREAM_{name.upper()}": str(value) for name, value in (settings or {}).items()}
    return kept | USUAL | {"SPENDSTREAM_DATA_DIR": str(data_dir)} | given


@contextmanager
def variables(values: Mapping[str, object]) -> Iterator[None]:
    """Environment variables that are these inside of the block, for the processes that are started there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Server:
    """One role's process on a data directory, started as often as one likes.

    After the first start it listens where it listened then, so that clients find it again.
    """

    def __init__(
        self,
        data_dir: Path,
        role: str = "serve",
        *,
        key: str | None = KEY,
        files: int | None = None,
        as_shipped: bool = False,
        **settings: object,
    ) -> None:
        """`files` is the limit of open files it runs with, if not that of the tests.

        `as_shipped`: each process is a program that Python starts; else one that was forked where that is quicker.
        """
        self.data_dir = data_dir
        self.role = role
        self.key = key or ""
        """The bootstrap key; with none given, the one that the first start made."""
        self.http = ""
        self.grpc = ""
        self.log_path = data_dir.with_name(f"{data_dir.name}-{role}.log")
        self._files = files
        self._is_forked = FORKED and not as_shipped
        self._settings: dict[str, object] = {"log_format": "json", **settings}
        if role == "store":
            self._settings = {"event_store": "on", **self._settings}
        elif role != "worker":
            self._settings = {"http_bind": next_bind(), "grpc_bind": next_bind(), **self._settings}
        if key is not None:
            self._settings["bootstrap_key"] = key
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._heard = threading.Condition()
        self._log_from = 0

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self, patience: float = PROCESS_PATIENCE) -> None:
        """Start and wait for the ready line; raises `NotReady`."""
        self.launch()
        self.wait_ready(patience)

    def launch(self) -> None:
        """Start without waiting."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._lines = []
        self._log_from = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            variables = environment(self.data_dir, self._settings)
            if self._is_forked and not AT_START & os.environ.keys():
                started = cli_host.Started([self.role], variables, self.data_dir.parent, log.fileno(), self._files)
                self._process = cast("subprocess.Popen[bytes]", started)  # the part of it that is used here
            else:
                limited = ["sh", "-c", f'ulimit -n {self._files} && exec "$0" "$@"']
                self._process = subprocess.Popen(
                    [*([] if self._files is None else limited), sys.executable, *_COMMANDS[self.role]],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=variables,
                    cwd=self.data_dir.parent,
                    start_new_session=True,
                )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._heard:
                    self._lines.append(line.decode().rstrip("\n"))
                    self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()

    def wait_ready(self, patience: float = PROCESS_PATIENCE) -> None:
        """Wait for the ready line of a process that was launched; raises `NotReady`."""
        deadline = time.monotonic() + patience
        with self._heard:
            while (ready := self._ready_line()) is None:
                left = deadline - time.monotonic()
                ended = self.process.poll() is not None
                if left <= 0 or ended:
                    raise NotReady(f"{self.role} ended with {self.process.poll()}, or was late:\n{self.log()[-4000:]}")
                self._heard.wait(min(left, 0.1))
        assert ready["role"] == self.role
        for door in ("http", "grpc"):
            if door in ready:
                setattr(self, door, ready[door])
                self._settings[f"{door}_bind"] = ready[door]
        for line in self._lines:
            if line.strip().startswith("key "):
                self.key = line.split()[1]

    def _ready_line(self) -> dict[str, Any] | None:
        for line in self._lines:
            if line.startswith("{"):
                said: dict[str, Any] = json.loads(line)
                return said
        return None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The supervisor, or the one process of a role alone."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def is_running(self) -> bool:
        """Whether `process` is."""
        return self._process is not None and self._process.poll() is None

    def stop(self, patience: float = PROCESS_PATIENCE) -> tuple[int, float]:
        """SIGTERM; returns the exit code and the seconds it took."""
        began = time.monotonic()
        self.process.terminate()
        code = self.process.wait(patience)
        seconds = time.monotonic() - began
        self._forget()
        return code, seconds

    def kill_all(self) -> None:
        """SIGKILL to the whole process group; returns when all of it is gone. Does nothing if nothing runs."""
        if self._process is None:
            return
        pids = [self.process.pid, *self.children().values()]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PROCESS_PATIENCE)
        wait_until(lambda: not any(map(is_alive, pids)))
        self._forget()

    def kill(self, part: Part) -> int:
        """SIGKILL to one process that is alive, waiting for it if it is just being started; returns its pid."""
        return self.signal(part, signal.SIGKILL)

    def signal(self, part: Part, signum: int) -> int:
        """Send a signal to one process that is alive, waiting for it if it is just being started; returns its pid."""
        deadline = time.monotonic() + PROCESS_PATIENCE
        while True:
            pid = self.pid(part)
            if pid is not None and is_alive(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
                    if part == "supervisor" and signum == signal.SIGKILL:
                        self.process.wait(PROCESS_PATIENCE)
                    return pid
            if time.monotonic() > deadline:
                raise NotReady(f"the {part} is not there:\n{self.log()[-4000:]}")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        """Whether `/readyz` says so, of one of its API processes."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def create_key(self, *arguments: str) -> dict[str, Any]:
        """`keys create` with `arguments`; returns what it says once each API process goes by the new key."""
        made = self.cli("keys", "create", *arguments, "--json")
        assert made.returncode == 0, made.stderr
        said: dict[str, Any] = json.loads(made.stdout)
        asked = 1 if int(str(self._settings.get("api_processes", 1))) == 1 else 20  # each connection is given to any
        wait_until(lambda: all(self.knows(said["key"]) for _ in range(asked)))
        return said

    def knows(self, key: str) -> bool:
        """Whether the API process that is given a new connection goes by a key."""
        request = urllib.request.Request(f"http://{self.http}/v1/quota", headers={"x-api-key": key})
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except urllib.error.HTTPError as refused:
            refused.close()
            return refused.code != HTTPStatus.UNAUTHORIZED
        except OSError:
            return False

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.join(5)

    # --- what it says -----------------------------------------------------------------------------------------------

    def pid(self, part: Part) -> int | None:
        """The newest process of a part; None if there is none yet."""
        return self.process.pid if part == "supervisor" or self.role != "serve" else self.children().get(part)

    def children(self) -> dict[str, int]:
        """Role -> pid of the newest child since the last start, by the supervisor's log."""
        return {entry["child"]: entry["pid"] for entry in self.entries("child.started")}

    def entries(self, event: str) -> list[dict[str, Any]]:
        """The log's entries called `event` since the last start."""
        found = []
        for line in self.log().splitlines():
            if line.startswith("{") and line.endswith("}"):
                entry = json.loads(line)
                if entry.get("event") == event:
                    found.append(entry)
        return found

    def log(self) -> str:
        """What was logged since the last start."""
        with self.log_path.open("rb") as file:
            file.seek(self._log_from)
            return file.read().decode(errors="replace")

    def banner(self) -> list[str]:
        """Standard output of the last start."""
        return list(self._lines)

    # --- beside it --------------------------------------------------------------------------------------------------

    def cli(self, *arguments: str, timeout: float = PROCESS_PATIENCE) -> "subprocess.CompletedProcess[str]":
        """Run a command of the command line on the data directory."""
        log = {name: self._settings[name] for name in KEPT_FOR_COMMANDS if name in self._settings}
        return run_cli(self.data_dir, *arguments, timeout=timeout, **log)


def run_cli(
    data_dir: Path, *arguments: str, timeout: float = PROCESS_PATIENCE, **settings: object
) -> "subprocess.CompletedProcess[str]":
    """Run `spendstream` with `arguments` on a data directory; does not raise for an exit code.

    It is forked (see `cli_host`), but where a disk is another one from the start; roles only in a test.
    """
    if (FORKED or arguments[0] not in _COMMANDS) and not AT_START & os.environ.keys():
        done = cli_host.run(arguments, environment(data_dir, settings), data_dir.parent, timeout)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=environment(data_dir, settings),
        cwd=data_dir.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def server(
    data_dir: Path | None = None, role: str = "serve", *, start: bool = True, **options: Any
) -> Iterator[Server]:
    """A server for the length of the block; whatever happens in it, none of its processes is left after."""
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spendstream-"))) / "data"
        made = Server(data_dir, role, **options)
        stack.callback(made.kill_all)
        try:
            if start:
                made.start()
            yield made
        except TimeoutError as error:
            error.add_note(f"the end of the log of {made.role}:\n{made.log()[-4000:]}")
            raise


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended, down to its last thread, and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    proc = Path(f"/proc/{pid}")
    try:
        state = (proc / "stat").read_text().rpartition(")")[2].split()[0]
        # The first thread may be done for while others still hold the files, and so the ports, of the process.
        return state != "Z" or len(list((proc / "task").iterdir())) > 1
    except OSError:
        return not Path("/proc/self").exists()  # gone since; where there is no /proc a zombie cannot be told apart


def losses_in(readiness: str) -> list[str]:
    """Return what the body of `/readyz` says is gone from the log, without how far the tables are behind it."""
    return [each for each in json.loads(readiness)["warnings"] if not each.startswith("the tables are ")]


def wait_until(condition: Callable[[], object], patience: float = PROCESS_PATIENCE) -> float:
    """Wait until `condition()` holds; returns the seconds it took, raises `TimeoutError`.

    It asks a hundred times a second at first, later twenty times: most conditions are a request or read a whole log.
    """
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        if waited > patience:
            raise TimeoutError(f"not within {patience} s")
        time.sleep(min(0.05, max(0.01, waited / 20)))
    return time.monotonic() - began


def all_gone(pids: Sequence[int]) -> bool:
    """Whether none of the processes runs."""
    return not any(map(is_alive, pids))
