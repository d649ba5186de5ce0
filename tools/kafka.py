"""A real Kafka broker on this machine: one node, broker and controller in one Java process, on 127.0.0.1 only.

    with Broker(Path("/tmp/broker")) as broker:
        ...  # broker.bootstrap is "127.0.0.1:PORT"

As a program: `python -m tools.kafka [--port 9092]`, or `make kafka`. The settings are for one node on a busy machine:
little memory, a fast start, short sessions. They are no example for production (deploy/ has one with three brokers).

Like every Kafka broker by default, this one answers a producer when a record is in the memory of the system, not on the
disk: what it acknowledged outlives `kill -9` of the broker, but one node alone loses it in a power cut. In a cluster
the replicas are the durability. `overrides={"log.flush.interval.messages": "1"}` makes it fsync before it answers, at
the price of many times the latency.
"""

import argparse
import base64
import contextlib
import fcntl
import itertools
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tools.kafka_jars import HOME, NoKafka, class_archive, jars, java
from tools.tied_process import STOP_PATIENCE, NotStarted, TiedProgram, tied

HOST: Final = "127.0.0.1"
JVM: Final = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
START_PATIENCE: Final = 180.0
EXERCISE_PATIENCE: Final = 10.0
"""Seconds within which a broker that runs has its own topics; without them its archive of classes is a smaller one."""

SETTINGS: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    # One node: Kafka's own topics cannot have three replicas, and one partition each is made faster than fifty.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # A group that forms at once, members that may be missed soon.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # After kill -9 the next process has to wait for the end of the session of the one before.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "250",
    # No record every half a second that only says that there is a controller: one node needs none.
    "metadata.max.idle.interval.ms": "0",
    # Small: the default of 128 MiB for the cleaner alone would be half of the heap.
    "log.cleaner.dedupe.buffer.size": str(16 << 20),
    "num.io.threads": "4",
    "num.network.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "background.threads": "2",
}

LOGGING: Final = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS",
    # Kafka asks log4j for the levels of its loggers: there is none to change.
    "-Dlog4j.provider=org.apache.logging.log4j.simple.internal.SimpleProvider",
)


@dataclass(frozen=True)
class Security:
    """What a client needs for the listener with TLS and SASL; SCRAM-SHA-256 and PLAIN both take the same user."""

    authority: Path
    """PEM certificate to trust."""
    user: str = "spendstream"
    password: str = "a-password-for-tests"  # noqa: S105


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on.

    They lie below the range from which systems take the ports of outgoing connections: else a client that tries again
    and again while the broker is down could be given the broker's own port, and meet itself there.
    """
    candidates = random.sample(range(20_000, 32_000), 1_000)
    return list(itertools.islice(filter(is_free, candidates), count))


class Broker(TiedProgram):
    """A broker on a directory, started as often as one likes; it keeps its ports as long as this object lives.

    `port` 0 takes a free one. `overrides` are broker settings that win over `SETTINGS`. `secure` adds a listener with
    TLS and SASL at `secure_bootstrap`; SCRAM knows its user only if the directory's first start was a secure one. The
    process dies with this one, however this one goes.
    """

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        overrides: Mapping[str, str] | None = None,
        *,
        secure: bool = False,
        jvm: Sequence[str] = (),
        home: Path = HOME,
    ) -> None:
        self.directory = directory.absolute()
        super().__init__(self.directory / "broker.log")
        self.security = Security(self.directory / "tls" / "authority.pem") if secure else None
        taken, self._secure_port, self._controller_port = free_ports(3)
        self._port = port or taken
        self._overrides = dict(overrides or {})
        self._jvm = [*JVM, *jvm]
        self._home = home

    @property
    def bootstrap(self) -> str:
        """host:port for clients without security."""
        return f"{HOST}:{self._port}"

    @property
    def secure_bootstrap(self) -> str:
        """host:port for clients with TLS and SASL; see `security`."""
        assert self.security is not None, "made without secure=True"
        return f"{HOST}:{self._secure_port}"

    @property
    def url(self) -> str:
        """The value of SPENDSTREAM_BROKER."""
        return f"kafka://{self.bootstrap}"

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self, patience: float = START_PATIENCE) -> Self:
        """Start it, for the first time or again, and wait until it answers. Raises `NoKafka`, `NotStarted`."""
        self.launch()
        self.wait_ready(patience)
        return self

    def launch(self) -> None:
        """Start it without waiting, but for the jars and the first formatting of the directory."""
        assert not self.is_running, "it runs already"
        if not is_free(self._port):
            raise NotStarted(f"port {self._port} is taken: another broker may be running there")
        scratch = self.directory / "tmp"
        program = [java(), *self._jvm, *LOGGING, f"-Djava.io.tmpdir={scratch}", "-cp", f"{jars(self._home)}/*"]
        archive = class_archive(self._home)
        if archive.exists():  # of another build of Java it is passed over: no word of that in the log
            program[1:1] = [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto", "-Xlog:cds*=off"]
        shutil.rmtree(scratch, ignore_errors=True)  # a broker that was killed has left libraries that it had unpacked
        scratch.mkdir(parents=True)
        if self.security is not None:
            _certify(self.security.authority)
        config = self.directory / "server.properties"
        config.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
        if not (self.directory / "data" / "meta.properties").exists():
            self._format(program, config)
        self.process = self._spawn([*program, "kafka.Kafka", str(config)])

    def wait_ready(self, patience: float = START_PATIENCE) -> None:
        """Wait until it answers; raises `NotStarted`, and then nothing is left running."""
        deadline = time.monotonic() + patience
        while not answers(self._port):
            if not self.is_running or time.monotonic() > deadline:
                was = "was late" if self.is_running else f"ended with {self.process and self.process.returncode}"
                self.kill()
                raise NotStarted(f"the broker {was}; the end of {self.log_path}:\n{self.log()[-3000:]}")
            time.sleep(0.05)

    def exercise(self) -> bool:
        """Make it do what it does for a transaction and for a group, so that Java has loaded the classes for it.

        Returns whether it has done so in time.

        Its own topics are made (FindCoordinator, version 1, of a group and of a transactional id), the second one is
        written to (InitProducerId, version 0) and read from (Fetch, version 4).
        """
        name, topic = struct.pack(">h", 5) + b"probe", b"__transaction_state"
        for kind in (0, 1):
            _ask(self._port, 10, 1, name + bytes([kind]))
        fetched = struct.pack(">iiiibih", -1, 0, 1, 1 << 20, 1, 1, len(topic)) + topic
        deadline = time.monotonic() + EXERCISE_PATIENCE
        while time.monotonic() < deadline:
            (failed,) = struct.unpack_from(">4xh", _ask(self._port, 22, 0, name + struct.pack(">i", 1000)))
            if not failed:
                answer = _ask(self._port, 1, 4, fetched + struct.pack(">iiqi", 1, 0, 0, 1 << 20))
                return topic in answer
            time.sleep(0.1)  # no coordinator yet
        return False

    def __enter__(self) -> Self:
        return self if self.is_running else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- how --------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, str]:
        listeners = {"PLAINTEXT": f"{HOST}:{self._port}", "CONTROLLER": f"{HOST}:{self._controller_port}"}
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        secure: dict[str, str] = {}
        if self.security is not None:
            listeners["SECURE"] = f"{HOST}:{self._secure_port}"
            protocols["SECURE"] = "SASL_SSL"
            secure = _secure_settings(self.security)
        return {
            **SETTINGS,
            "listeners": ",".join(f"{name}://{address}" for name, address in listeners.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in protocols.items()),
            "controller.quorum.voters": f"1@{listeners['CONTROLLER']}",
            "log.dirs": str(self.directory / "data"),
            **secure,
            **self._overrides,
        }

    def _format(self, program: list[str], config: Path) -> None:
        """Format the directory: by Kafka's own tool, or as that has formatted another one, which takes no Java."""
        data, kept = self.directory / "data", jars(self._home).with_suffix(".formatted")
        is_usual = self.security is None and not self._overrides
        if is_usual and kept.is_dir():
            part = data.with_name("data.part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(kept, part)
            meta = part / "meta.properties"
            lines = [line.partition("=") for line in meta.read_text().splitlines()]
            ids = {"cluster.id", "directory.id"}
            meta.write_text(
                "".join(f"{name}{sep}{_new_id() if name in ids else value}\n" for name, sep, value in lines)
            )
            part.rename(data)
            return
        command = [*program, "kafka.tools.StorageTool", "format", "--cluster-id", _new_id(), "--config", str(config)]
        if self.security is not None:
            user = f"SCRAM-SHA-256=[name={self.security.user},password={self.security.password}]"
            command += ["--add-scram", user]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotStarted(f"the directory cannot be formatted:\n{(done.stdout + done.stderr)[-3000:]}")
        if is_usual:
            part = Path(tempfile.mkdtemp(prefix="formatted-", dir=self._home)) / "data"
            shutil.copytree(data, part)
            with contextlib.suppress(OSError):  # another one was first
                part.rename(kept)
            shutil.rmtree(part.parent)

    def _spawn(self, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start the process from a thread that lives as long as it does.

        The tie that ends a child with its parent is one to the thread that made it; `start` may well be called from one
        that ends soon.
        """
        made: list[subprocess.Popen[bytes] | OSError] = []
        is_made = threading.Event()
        # No preexec_fn: with one Python forks, not vforks, and the child may never come out of gRPC's fork handlers.
        command = tied(command)

        def keep() -> None:
            try:
                with self.log_path.open("ab") as log:
                    process = subprocess.Popen(
                        command,
                        cwd=self.directory,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C is for this program, which then stops the broker
                    )
                made.append(process)
            except OSError as error:
                made.append(error)
                return
            finally:
                is_made.set()
            process.wait()

        threading.Thread(target=keep, name="broker", daemon=True).start()
        is_made.wait()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]


def _new_id() -> str:
    """An id as Kafka writes them. Its own may begin with a dash; one that is given must not."""
    return base64.urlsafe_b64encode(b"\x00" + uuid.uuid4().bytes[1:]).decode().rstrip("=")


def answers(port: int) -> bool:
    """Whether a broker takes requests on this port and counts itself among the living.

    Asks for the list of brokers (Metadata, version 1): a port that is open says nothing yet, and a broker that has just
    started is not in the list until the controller lets it take part.
    """
    try:
        brokers, *_ = struct.unpack_from(">i", _ask(port, 3, 1, struct.pack(">i", 0)))  # 0 topics
    except (OSError, struct.error):
        return False
    return bool(brokers > 0)


def _ask(port: int, api: int, version: int, body: bytes) -> bytes:
    """Send a request (Kafka's protocol guide, header version 1), and return the answer behind its header."""
    client = b"probe"
    request = struct.pack(">hhih", api, version, 0, len(client)) + client + body
    with socket.create_connection((HOST, port), timeout=2) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answer:
            size, _correlation = struct.unpack(">ii", answer.read(8))
            return answer.read(size - 4)


def make_archive(home: Path = HOME) -> None:
    """Make the archive of classes that cheapens every later start, if there is none: one broker starts and stops.

    Takes some ten seconds. Two programs that ask at once make it once. Raises `NoKafka`, `NotStarted`.
    """
    archive = class_archive(home)
    with (home / "classes.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if archive.exists():
            return
        with tempfile.TemporaryDirectory(prefix="kafka-classes-") as scratch:
            made = Path(scratch) / archive.name
            broker = Broker(Path(scratch) / "broker", jvm=[f"-XX:ArchiveClassesAtExit={made}"], home=home)
            broker.start(2 * START_PATIENCE)
            broker.exercise()
            if broker.stop(2 * STOP_PATIENCE) and made.exists():
                part = archive.with_suffix(".part")
                shutil.copyfile(made, part)
                part.rename(archive)


def _certify(authority: Path) -> None:
    """Make an authority and the broker's certificate, once. Kafka reads key (as PKCS 8) and chain from one file."""
    if authority.exists():
        return
    try:
        import trustme
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            load_pem_private_key,
        )
    except ImportError:
        raise NoKafka("certificates are made with trustme: `make setup` installs it") from None
    authority.parent.mkdir(exist_ok=True)
    made = trustme.CA()
    issued = made.issue_cert("localhost", HOST)
    key = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (authority.parent / "broker.pem").write_bytes(pkcs8 + b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    made.cert_pem.write_to_path(str(authority))


def _secure_settings(security: Security) -> dict[str, str]:
    listener = "listener.name.secure"
    module = "org.apache.kafka.common.security"
    plain = f'{module}.plain.PlainLoginModule required user_{security.user}="{security.password}";'
    return {
        f"{listener}.ssl.keystore.type": "PEM",
        f"{listener}.ssl.keystore.location": str(security.authority.with_name("broker.pem")),
        f"{listener}.sasl.enabled.mechanisms": "SCRAM-SHA-256,PLAIN",
        f"{listener}.scram-sha-256.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
        f"{listener}.plain.sasl.jaas.config": plain,
    }


# --- the program ----------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    print(line, flush=True)


def until_signalled(is_over: Callable[[], bool]) -> None:
    """Return at SIGINT, at SIGTERM, or when `is_over()`."""
    signalled = threading.Event()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: signalled.set())
    while not signalled.wait(0.5) and not is_over():
        pass


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.kafka", description="A Kafka broker on this machine.")
    parser.add_argument("--port", type=int, default=9092, help="port on 127.0.0.1; 0 takes a free one (9092)")
    parser.add_argument("--dir", type=Path, default=HOME / "data", help=f"its data and its log ({HOME / 'data'})")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the broker")
    parser.add_argument("--secure", action="store_true", help="also a listener with TLS and SASL")
    parser.add_argument("--jvm", action="append", default=[], metavar="OPTION", help="for Java, such as --jvm=-Xmx1g")
    parser.add_argument("--fetch", action="store_true", help="only bring the jars, and make their start a fast one")
    given = parser.parse_args(arguments)
    overrides = dict(each.partition("=")[::2] for each in given.set)
    broker = Broker(given.dir, given.port, overrides, secure=given.secure, jvm=given.jvm)
    try:
        if given.fetch:
            java()
            say(str(jars()))
            make_archive()
            return 0
        broker.start()
    except KeyboardInterrupt:
        broker.kill()
        return 130
    except (NoKafka, NotStarted) as error:
        print(error, file=sys.stderr)
        return 1
    say(f"Kafka is ready at {broker.bootstrap}")
    say(f"  data  {broker.directory}")
    say(f"  log   {broker.log_path}")
    if broker.security is not None:
        user = f"user {broker.security.user}, password {broker.security.password}"
        say(f"  TLS   {broker.secure_bootstrap}  (SCRAM-SHA-256 or PLAIN, {user}, trust {broker.security.authority})")
    say(f"  use   SPENDSTREAM_BROKER={broker.url} make run")
    until_signalled(lambda: not broker.is_running)
    if not broker.is_running:
        print(f"The broker ended; the end of {broker.log_path}:\n{broker.log()[-3000:]}", file=sys.stderr)
        return 1
    say("Stopping Kafka ...")
    return 0 if broker.stop() else 1


if __name__ == "__main__":
    sys.exit(main())
