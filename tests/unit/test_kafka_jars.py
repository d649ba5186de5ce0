"""Where no broker can be had, the reason names what to install."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.kafka_jars import NoKafka, jars, java


@pytest.fixture(autouse=True)
def _forgets_which_java() -> Iterator[None]:
    java.cache_clear()
    yield
    java.cache_clear()


def fake(directory: Path, name: str, script: str) -> Path:
    directory.mkdir(exist_ok=True)
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one directory on PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return directory


def test_no_java(only: Path) -> None:
    with pytest.raises(NoKafka, match=r"openjdk-17.*no `java` on PATH"):
        java()


def test_an_old_java(only: Path) -> None:
    fake(only, "java", """echo 'openjdk version "11.0.2"' >&2""")
    with pytest.raises(NoKafka, match=r"Java 17 or newer.* is 11"):
        java()


def test_java_home_goes_before_path(only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(only, "java", """echo 'openjdk version "11.0.2"' >&2""")
    (tmp_path / "jdk").mkdir()
    newer = fake(tmp_path / "jdk" / "bin", "java", """echo 'openjdk version "21.0.1"' >&2""")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert java() == str(newer)


def test_no_maven(only: Path, tmp_path: Path) -> None:
    fake(only, "java", """echo 'openjdk version "17.0.1"' >&2""")
    with pytest.raises(NoKafka, match="no `mvn` on PATH"):
        jars(tmp_path / "home")


def test_a_maven_that_fails_leaves_nothing_that_looks_whole(only: Path, tmp_path: Path) -> None:
    fake(only, "java", """echo 'openjdk version "17.0.1"' >&2""")
    fake(only, "mvn", "echo no way out >&2; exit 1")
    with pytest.raises(NoKafka, match="no way out"):
        jars(tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["jars.lock"]


def test_jars_are_brought_once(only: Path, tmp_path: Path) -> None:
    fake(only, "java", """echo 'openjdk version "17.0.1"' >&2""")
    maven = fake(
        only, "mvn", 'for each in "$@"; do to=${each#-DoutputDirectory=}; done; /bin/mkdir "$to"; : > "$to/kafka.jar"'
    )
    ready = jars(tmp_path / "home")
    assert [path.name for path in ready.iterdir()] == ["kafka.jar"]
    maven.unlink()
    assert jars(tmp_path / "home") == ready
