"""`spendstream` commands without the start of an interpreter: forked from a process that has loaded the program.

A start costs six tenths of a CPU second, nearly all of it for imports, and the tests make hundreds. Each command is a
process of its own all the same, with its own environment, directory, streams and end. What Python decides at its start
(the encoding of its streams, what it has of the locale) is that of the host: tests of those start Python themselves.

The same holds for the processes that a supervisor starts. It asks `asyncio` and `subprocess` for them as ever, with the
same command, environment, descriptors and `preexec_fn`, and is their parent; but where the kernel would replace the
program in the child (exec), the child becomes the role as it is.

The host, `python -m tests.support.cli_host FD`, is asked over a socket; it has one thread, and no connection or file
of the program is open in it.
"""

import array
import asyncio
import atexit
import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.support.patience import PROCESS_PATIENCE

ROOT: Final = Path(__file__).resolve().parents[2]
CLOCK: Final = "CHAOS_CLOCK"
"""The variable with the file of a clock that a test turns (see `clock`)."""
LOCALE: Final = ("LC_ALL", "PYTHONUTF8", "PYTHONCOERCECLOCALE", "PYTHONIOENCODING")
"""The variables by which Python decides at its start what it makes of text."""
LARGEST: Final = 1 << 20
"""Bytes of a question."""
FDS: Final = 4
"""Standard input, output and error, and a pipe for what becomes of it."""

LOADED: Final = (
    "server.cli.commands",
    "server.supervisor",
    "server.api",
    "processor.__main__",
    "processor.event_store.__main__",
    "server.explore.process",
    # What these load once they run.
    "uvloop",
    "numpy.ma",
    "processor.log.embedded.transport",
    "processor.log.kafka.transport",
    "faust.app.router",
    "faust.events",
    "faust.tables.objects",
    "faust.tables.sets",
    "faust.topics",
    "faust.transport.conductor",
)
"""What the host has for those who become one of these."""

_lock = threading.Lock()
_hosts: dict[tuple[object, ...], tuple[socket.socket, "subprocess.Popen[bytes]"]] = {}
"""The hosts of a process: by locale, and whether their programs go by the clock that their variables name."""


class Command:
    """A command that runs; `wait` gives its exit code, negative for a signal, as `subprocess` has it."""

    def __init__(
        self,
        arguments: Sequence[str | bytes],
        variables: Mapping[str, str],
        directory: Path,
        streams: tuple[int, int, int],
        files: int | None = None,
    ) -> None:
        """`streams`: descriptors of standard input, output and error, which stay the caller's to close.

        `files`: how many it may have open, if not as many as this process.

        It leads a session and a process group of its own.
        """
        self._said, theirs = os.pipe()
        question = {
            "arguments": [os.fsencode(each).decode(errors="surrogateescape") for each in arguments],
            "variables": dict(variables),
            "directory": str(directory),
            "files": files,
        }
        try:
            _ask(json.dumps(question).encode(), [*streams, theirs], variables)
        finally:
            os.close(theirs)
        self._lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = int(self._line(PROCESS_PATIENCE))

    def _line(self, timeout: float) -> bytes:
        """The next line of what becomes of it; raises `TimeoutError`."""
        deadline = time.monotonic() + timeout
        text = b""
        while not text.endswith(b"\n"):
            if not select.select([self._said], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the command has not ended")
            part = os.read(self._said, 1)
            if not part:
                raise ChildProcessError("the host of commands is gone")
            text += part
        return text

    def wait(self, timeout: float) -> int:
        """Its exit code; raises `TimeoutError`."""
        with self._lock:
            if self.returncode is None:
                self.returncode = int(self._line(timeout))
                os.close(self._said)
            return self.returncode

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        try:
            return self.wait(0)
        except TimeoutError:
            return None

    def _signal(self, signum: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def terminate(self) -> None:
        """SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)


class Started(Command):
    """A command whose standard output is read while it runs; `log` gets its standard error."""

    def __init__(
        self,
        arguments: Sequence[str | bytes],
        variables: Mapping[str, str],
        directory: Path,
        log: int,
        files: int | None = None,
    ) -> None:
        ours, theirs = os.pipe()
        self.stdout = os.fdopen(ours, "rb")
        with Path(os.devnull).open("rb") as nothing:
            try:
                super().__init__(arguments, variables, directory, (nothing.fileno(), theirs, log), files)
            finally:
                os.close(theirs)


def run(
    arguments: Sequence[str | bytes], variables: Mapping[str, str], directory: Path, timeout: float = 60.0
) -> "subprocess.CompletedProcess[bytes]":
    """Run `spendstream` with `arguments`, nothing on its standard input; raises `subprocess.TimeoutExpired`."""
    written: list[bytes] = [b"", b""]
    pipes = [os.pipe() for _ in written]
    with Path(os.devnull).open("rb") as nothing:
        try:
            command = Command(arguments, variables, directory, (nothing.fileno(), pipes[0][1], pipes[1][1]))
        finally:
            for _, theirs in pipes:
                os.close(theirs)

    def read(number: int) -> None:
        with os.fdopen(pipes[number][0], "rb") as ours:
            written[number] = ours.read()

    readers = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(2)]
    for reader in readers:
        reader.start()
    try:
        code = command.wait(timeout)
    except TimeoutError:
        command.kill()
        command.wait(PROCESS_PATIENCE)
        raise subprocess.TimeoutExpired([str(each) for each in arguments], timeout) from None
    finally:
        for reader in readers:
            reader.join(PROCESS_PATIENCE)
    return subprocess.CompletedProcess(list(arguments), code, *written)


def _ask(question: bytes, descriptors: list[int], variables: Mapping[str, str]) -> None:
    has_clock = CLOCK in variables
    locale = {name: variables[name] for name in LOCALE if name in variables} if "PYTHONUTF8" in variables else {}
    with _lock:
        place = os.getpid(), has_clock, *locale.items()
        if place not in _hosts:
            _hosts[place] = _start(locale, has_clock=has_clock)
            atexit.register(_end, os.getpid(), *_hosts[place])
        host, _ = _hosts[place]
        fds = array.array("i", descriptors).tobytes()
        host.sendmsg([question], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


def _end(owner: int, host: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    if owner == os.getpid():
        host.close()
        process.wait(PROCESS_PATIENCE)


def _start(locale: Mapping[str, str], *, has_clock: bool) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """Start the host; it ends when this process does, for then nobody holds the other end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
    with theirs:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SPENDSTREAM_")}
        variables |= locale
        if not has_clock:
            variables.pop(CLOCK, None)
        command = [sys.executable, "-m", "tests.support.cli_host", str(theirs.fileno())]
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
        )
    return ours, process


# --- in the host -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Fork for each question until nobody can ask any more."""
    for name in LOADED:
        import_module(name)
    from server.cli import commands

    list(commands.main.commands.values())  # each is loaded as it is asked for
    os.environ.pop(CLOCK, None)  # that of the test which came first
    gc.collect()
    gc.freeze()  # what is loaded is not walked again in each process
    host = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait for commands
    while True:
        question, ancillary, _, _ = host.recvmsg(LARGEST, socket.CMSG_SPACE(FDS * array.array("i").itemsize))
        if not question:
            return
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        if os.fork() == 0:
            host.close()
            _wait_for(json.loads(question), list(fds))
        for fd in fds:
            os.close(fd)


def _wait_for(question: dict[str, Any], fds: list[int]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, said = fds
    os.setsid()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(said)
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
            os.close(fd)
        os.chdir(question["directory"])
        if question["files"] is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (question["files"], question["files"]))
        for module, name, own in ((asyncio, "create_subprocess_exec", _start_role), (os, "execv", _replace)):
            setattr(module, name, own)
        arguments = [os.fsdecode(each.encode(errors="surrogateescape")) for each in question["arguments"]]
        _become(["-m", "server", *arguments], question["variables"])
    for fd in streams:
        os.close(fd)
    os.write(said, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(said, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(command: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Be `python` with these arguments and variables: as if it had started with the descriptors that are open."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(variables)
        _wait_without_threads()
        # With the encodings that Python has chosen for the host, and for as long as the process.
        streams = (sys.stdin, sys.stdout, sys.stderr)
        texts: list[dict[str, Any]] = [{"encoding": each.encoding, "errors": each.errors} for each in streams]
        sys.stdin = open(0, closefd=False, **texts[0])  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False, buffering=1 if os.isatty(1) else -1, **texts[1])  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, buffering=1, **texts[2])  # noqa: SIM115
        _run_module(command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - it ends the process, as in Python
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _wait_without_threads() -> None:
    """Python 3.11 has a thread wait for each child that asyncio starts, and beside threads none is forked here."""
    if sys.version_info < (3, 12) and hasattr(os, "pidfd_open"):
        _inherited.append(asyncio.get_event_loop_policy())  # type: ignore[deprecated]
        # That of the parent would close descriptors which this process has not.
        asyncio.set_event_loop_policy(None)  # type: ignore[deprecated]
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())  # type: ignore[deprecated]


def _run_module(command: Sequence[str]) -> NoReturn:
    flag, module, *arguments = command
    assert flag == "-m", command
    if module == "processor":
        from processor.__main__ import main as worker

        sys.argv = ["processor", *arguments]
        sys.exit(worker())
    if module == "processor.event_store":
        from processor.event_store.__main__ import main as store

        sys.argv = ["processor", *arguments]
        sys.exit(store())
    assert module == "server", command
    from server.cli import commands

    sys.argv = ["spendstream", *arguments]
    commands.main(prog_name="spendstream")
    raise AssertionError("click ends the program")


# --- what a process that was forked has instead of exec ---------------------------------------------------------------

_inherited: Final[list[object]] = []
"""What holds children of the parent, which would be killed if it was tidied away here."""
_create_subprocess_exec: Final = asyncio.create_subprocess_exec
_execv: Final = os.execv
_AT_START: Final[dict[int, Any]] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGCHLD: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGPIPE: signal.SIG_IGN,
    signal.SIGXFSZ: signal.SIG_IGN,
}
"""As Python has them when it has started."""


async def _start_role(
    program: str,
    *command: str,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
    preexec_fn: Callable[[], None] | None = None,
    **options: Any,
) -> asyncio.subprocess.Process:
    """`asyncio.create_subprocess_exec`, for a child that becomes the role."""
    assert program == sys.executable
    if threading.active_count() > 1:  # an API process, whose locks may be held at the fork
        return await _create_subprocess_exec(
            program, *command, env=env, pass_fds=pass_fds, preexec_fn=preexec_fn, **options
        )

    def instead_of_exec() -> None:
        if preexec_fn is not None:
            preexec_fn()
        _forget(keep=pass_fds)
        _become(command, env)

    return await _create_subprocess_exec(
        program, *command, env=env, pass_fds=pass_fds, preexec_fn=instead_of_exec, **options
    )


def _replace(program: str, command: list[str]) -> NoReturn:
    """`os.execv`, where the program that comes is one of ours."""
    assert program == command[0] == sys.executable
    if threading.active_count() > 1:  # they would live on
        _execv(program, command)
    _forget(keep=[])
    _become(command[1:], dict(os.environ))


def _forget(keep: Sequence[int]) -> None:
    """What exec makes of a process: no handlers of signals, no descriptors but those that are passed on."""
    signal.set_wakeup_fd(-1)
    for signum, handler in _AT_START.items():
        signal.signal(signum, handler)
    gc.freeze()  # what the one before has left is not to be tidied away here: it may belong to threads that are gone
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


if __name__ == "__main__":
    main()
