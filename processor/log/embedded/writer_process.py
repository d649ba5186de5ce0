"""Writing to the embedded log through a small process.

Writers take turns (`log.lock`): one that stands still keeps all others waiting, and one of a low priority until it gets
a core. The event store may do both. So its writes are those of a process that it forks, which does nothing else, has
the usual priority, and ends with it.
"""

import contextlib
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

from processor.log.embedded.log import Log
from processor.log.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from processor.log.records import Append, TopicPartition


_ENDING: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals that a whole process group may get: the process that writes ends when the other one has."""


class WriterGone(Exception):
    """The process that writes has ended."""


class WriterProcess:
    """A process that writes to the log in `data_dir` while this one lives.

    Make it before there are threads. It keeps the locks (`FileLock`) that this process has until then, so that they are
    free when the last write is done.
    """

    def __init__(self, data_dir: Path) -> None:
        their_requests, requests = os.pipe()
        answers, their_answers = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # until it ignores them
        self.pid = os.fork()
        if not self.pid:
            for signum in _ENDING:
                signal.signal(signum, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(requests)
            os.close(answers)
            _serve(data_dir, os.fdopen(their_requests, "rb"), os.fdopen(their_answers, "wb"))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(their_requests)
        os.close(their_answers)
        self._requests, self._answers = os.fdopen(requests, "wb"), os.fdopen(answers, "rb")
        self._turn = threading.Lock()

    def call(self, name: str, *arguments: Any) -> Any:
        """Have it call a method of its `Log`; return what that returns, or raise the `LogError` that it raises.

        Raises `WriterGone`: then it may have been done. From any thread; blocks.
        """
        try:
            with self._turn:
                pickle.dump((name, arguments), self._requests, pickle.HIGHEST_PROTOCOL)
                self._requests.flush()
                answer = pickle.load(self._answers)  # noqa: S301 - our own process
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise WriterGone(f"the process that writes to the log has ended: {error!r}") from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """End it, and wait for that."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and a request for it was never written
            self._requests.close()
        self._answers.close()
        os.waitpid(self.pid, 0)


def _serve(data_dir: Path, requests: BinaryIO, answers: BinaryIO) -> NoReturn:
    """Answer requests until the other end is closed, which the kernel does when its process ends, however it does."""
    code = 1
    try:
        with open(os.devnull, "r+b") as nothing:  # noqa: PTH123 - as it is for `dup2`
            for fd in (0, 1):
                os.dup2(nothing.fileno(), fd)  # who reads the other process's output is not to wait for this one
        log: Log | None = None
        while True:
            name, arguments = pickle.load(requests)  # noqa: S301 - our own process
            try:
                log = log or Log(data_dir, create=False)
                answer = getattr(log, name)(*arguments)
            except LogError as error:
                answer = error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        code = 0
    finally:
        os._exit(code)


class LogWrittenAside(Log):
    """The embedded log for a process that reads it, and whose writes are done by `writer`."""

    def __init__(self, data_dir: Path, writer: WriterProcess) -> None:
        super().__init__(data_dir, create=False)
        self._writer: Final = writer

    def append(self, appends: "Iterable[Append]", at: int) -> list[int]:
        """See `Log.append`."""
        firsts: list[int] = self._writer.call("append", list(appends), at)
        return firsts

    def commit(self, consumer: str, offsets: "Iterable[tuple[TopicPartition, int]]") -> None:
        """See `Log.commit`."""
        self._writer.call("commit", consumer, list(offsets))

    def delete(self, tp: "TopicPartition", offsets: "Sequence[int]") -> None:
        """See `Log.delete`."""
        self._writer.call("delete", tp, list(offsets))

    def _writing(self) -> NoReturn:
        raise AssertionError("nothing else is written aside")
