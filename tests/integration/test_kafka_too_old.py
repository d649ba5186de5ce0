"""A real broker from before Kafka 2.3 is refused, by each role and in words that say what to do."""

from pathlib import Path

from confluent_kafka.admin import AdminClient

from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import run_cli


def test_old_brokers_are_refused_before_anything_is_made(old_kafka: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for command in ("worker", "api", "serve"):
        refused = run_cli(tmp_path / "data", command, broker=f"kafka://{old_kafka}")
        assert refused.returncode == 2, refused.stderr
        assert f"the brokers at {old_kafka} are too old: spendstream needs Kafka 2.3 or newer" in refused.stderr
        assert "Traceback" not in refused.stderr
    topics = AdminClient({"bootstrap.servers": old_kafka}).list_topics(timeout=PROCESS_PATIENCE).topics
    assert not any(name.startswith("spendstream") for name in topics)
