"""Rows `postgres`, `postgres-wide`: the same traffic through FastAPI and PostgreSQL (`peer_app.py`), exact, too."""

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench import machine
from tests.bench.context import KEY, Bench, outcome_of, quantiles
from tests.bench.corpus import Corpus
from tests.bench.end_to_end import Reader
from tests.bench.programs import Failed, Meter, running
from tests.bench.results import RATE, Figures

ACCOUNT: Final = "postgres"
"""Who runs the server if we are root, whom it refuses."""
PLACES: Final = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
CONFIGURATION: Final = """
listen_addresses = ''
unix_socket_directories = '{directory}'
shared_buffers = 1GB
max_wal_size = 8GB
wal_compression = on
synchronous_commit = on
fsync = on
"""


def postgres(bench: Bench) -> Figures:
    """gzip bodies of 100 events over 16 connections, as for `e2e-http`."""
    return _end_to_end(bench, bench.corpus)


def postgres_wide(bench: Bench) -> Figures:
    """The same, as for `e2e-http-wide`."""
    return _end_to_end(bench, bench.wide)


def _end_to_end(bench: Bench, corpus: Corpus) -> Figures:
    events, truth = corpus.count, corpus.truth
    with bench.fresh() as directory, database(directory) as (dsn, pid):
        arguments = ["-m", "tests.bench.peer_app", dsn, KEY]
        with running(arguments, directory / "app") as program:
            said = program.line()
            with bench.load("json", said, corpus=corpus) as load:
                meter = Meter({"api": program.pid, "loader": load.pid})
                before = _backends(pid)
                load.tell("go")
                outcome = outcome_of(load, events)
                reader = Reader(said)
                seconds = reader.wait_for(truth.unique) - outcome.began
                used = meter.figures(events, seconds)
                reader.compare(truth, sums_only=True)
                return {
                    RATE: events / seconds,
                    **used,
                    "CPU postgres": 1e6 * (_backends(pid) - before) / events,
                    **quantiles("acknowledged", outcome.latencies),
                }


@contextmanager
def database(directory: Path) -> Iterator[tuple[str, int]]:
    """A PostgreSQL server of its own in `directory`, on a socket there: its address and process id."""
    found = shutil.which("initdb")
    places = sorted(path for pattern in PLACES for path in Path("/").glob(pattern.lstrip("/")))
    bin_ = Path(found).resolve().parent if found else places[-1] if places else None
    if bin_ is None:
        raise Failed("PostgreSQL is not there: install it (Debian: apt-get install postgresql) or leave this row out")
    account = ACCOUNT if os.geteuid() == 0 else None
    data = directory / "postgres"
    data.mkdir(parents=True)
    if account is not None:
        os.chown(data, pwd.getpwnam(account).pw_uid, -1)
        for parent in (directory, *directory.parents):  # so that the account gets there
            if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    command: list[str | Path] = [bin_ / "initdb", "-D", data, "-A", "trust", "-U", "bench", "--no-sync"]
    subprocess.run(command, user=account, check=True, stdout=subprocess.DEVNULL, cwd=data)
    with (data / "postgresql.conf").open("a") as file:
        file.write(CONFIGURATION.format(directory=data))
    with (directory / "postgres.log").open("wb") as log:
        server = subprocess.Popen([bin_ / "postgres", "-D", data], user=account, stderr=log, cwd=data)
    try:
        deadline = time.monotonic() + 30
        ready: list[str | Path] = [bin_ / "pg_isready", "-q", "-h", data]
        while subprocess.run(ready, check=False).returncode:
            if time.monotonic() > deadline or server.poll() is not None:
                raise Failed(f"PostgreSQL does not start: {(directory / 'postgres.log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield f"postgresql://bench@/postgres?host={data}", server.pid
    finally:
        server.terminate()  # waits for connections, which are gone
        server.wait(30)


def _backends(pid: int) -> float:
    """CPU seconds of the server and its processes."""
    return sum(machine.cpu_seconds(each) or 0.0 for each in (pid, *machine.children(pid)))
