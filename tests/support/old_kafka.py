"""A real broker that is too old: Kafka 2.2 with its ZooKeeper, both on 127.0.0.1, in a directory of the caller's.

with old_broker(tmp_path) as bootstrap:
    ...  # "127.0.0.1:PORT"

As a program, `python -m tests.support.old_kafka` brings its jars.
"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.patience import PROCESS_PATIENCE
from tools.kafka import HOST, JVM, answers, free_ports
from tools.kafka_jars import jars, java
from tools.tied_process import NotStarted, tied

POM: Final = Path(__file__).with_name("old_kafka.pom.xml")

_LOGGING: Final = """\
log4j.rootLogger=WARN, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.SimpleLayout
"""


@contextmanager
def old_broker(directory: Path) -> Iterator[str]:
    """Raises `NoKafka` where it cannot be had, `NotStarted` where it can and does not start."""
    classes = jars(pom=POM)
    zookeeper, port = free_ports(2)
    logging = directory / "log4j.properties"
    logging.write_text(_LOGGING)
    own = directory / "zookeeper.properties"
    own.write_text(f"dataDir={directory / 'zookeeper'}\nclientPort={zookeeper}\nclientPortAddress={HOST}\n")
    settings = directory / "server.properties"
    settings.write_text(
        f"broker.id=1\nlisteners=PLAINTEXT://{HOST}:{port}\nlog.dirs={directory / 'data'}\n"
        f"zookeeper.connect={HOST}:{zookeeper}\noffsets.topic.replication.factor=1\n"
    )
    properties = {
        "java.io.tmpdir": directory,
        "log4j.configuration": f"file:{logging}",
        "zookeeper.admin.enableServer": "false",
    }
    java_ = [java(), *JVM, *(f"-D{name}={value}" for name, value in properties.items())]
    programs = [
        ["org.apache.zookeeper.server.quorum.QuorumPeerMain", str(own)],
        ["kafka.Kafka", str(settings)],
    ]
    log = directory / "output.log"
    running: list[subprocess.Popen[bytes]] = []
    with log.open("ab") as out:
        try:
            for program in programs:  # Kafka waits for a ZooKeeper that is still starting
                command = tied([*java_, "-cp", f"{classes}/*", *program])
                running.append(subprocess.Popen(command, cwd=directory, stdout=out, stderr=out))
            deadline = time.monotonic() + PROCESS_PATIENCE
            while not answers(port):
                if time.monotonic() > deadline or any(process.poll() is not None for process in running):
                    raise NotStarted(f"the old broker did not start:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.1)
            yield f"{HOST}:{port}"
        finally:
            for process in running:
                process.kill()
                process.wait(PROCESS_PATIENCE)


if __name__ == "__main__":
    jars(pom=POM)
