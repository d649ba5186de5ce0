"""TLS and SASL between the product and its broker, by setting."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import clients, users_topic
from tests.support.clients import Tally, reader
from tests.support.server import run_cli, server, wait_until
from tests.support.traffic import make_traffic
from tools.kafka import Broker


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN"])
async def test_the_product_speaks_tls_and_sasl(
    secure_kafka: Broker, prefix: str, tmp_path: Path, mechanism: str
) -> None:
    broker = secure_kafka
    assert broker.security is not None
    secure: dict[str, Any] = {
        "broker": f"kafka://{broker.secure_bootstrap}",
        "kafka_prefix": prefix,
        "kafka_security": "sasl_ssl",
        "kafka_sasl_mechanism": mechanism,
        "kafka_username": broker.security.user,
        "kafka_password": broker.security.password,
        "kafka_ca": broker.security.authority,
    }
    traffic = make_traffic(21, 1_500)
    with server(tmp_path / "data", partitions=2, **secure) as started:
        wait_until(lambda: len(started.entries("users.taken_over")) == 2)
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=True, details=5) == []
            assert await users_topic.differences(broker.bootstrap, tables, topic=f"{prefix}users") == []
        assert broker.security.password not in started.log()
        verified = run_cli(tmp_path / "data", "verify", "--json", **secure)
        assert verified.returncode == 0, verified.stderr
        assert started.stop()[0] == 0


def test_what_is_wrong_with_the_access_is_said(secure_kafka: Broker, tmp_path: Path) -> None:
    broker = secure_kafka
    assert broker.security is not None
    (tmp_path / "data").mkdir()
    access: dict[str, Any] = {
        "broker": f"kafka://{broker.secure_bootstrap}",
        "kafka_security": "sasl_ssl",
        "kafka_sasl_mechanism": "SCRAM-SHA-256",
        "kafka_username": broker.security.user,
        "kafka_password": broker.security.password,
        "kafka_ca": broker.security.authority,
    }
    guessed = run_cli(tmp_path / "data", "worker", **{**access, "kafka_password": "a-wrong-guess"})
    assert guessed.returncode == 2
    assert "authentication" in guessed.stderr.lower()
    assert "a-wrong-guess" not in guessed.stderr
    del access["kafka_ca"]
    distrusted = run_cli(tmp_path / "data", "worker", **access)
    assert distrusted.returncode == 2
    assert "certificate" in distrusted.stderr
