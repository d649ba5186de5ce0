"""The files of deploy/, as far as they can be checked without running them: that they agree with the product."""

import re
import tomllib
from typing import Any, Final
from xml.etree import ElementTree as ET

import pytest
import yaml

from server.cli.commands import main
from server.settings import ServerSettings
from tools.kafka_jars import POM, ROOT

COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "docker-compose.yml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
BROKERS: Final = ("kafka-1", "kafka-2", "kafka-3")
APIS: Final = ("api-1", "api-2")
WORKERS: Final = ("worker-1", "worker-2")
STORES: Final = ("store-1",)
SHARED: Final = "events:/events"
"""The volume of the event store."""

DOCKERFILE: Final = (ROOT / "deploy" / "Dockerfile").read_text()
SETTINGS: Final = (ROOT / "docs" / "reference" / "settings.md").read_text()
KNOWN: Final = {f"SPENDSTREAM_{name.upper()}" for name in ServerSettings.model_fields}


def environment(service: str) -> dict[str, str]:
    found: dict[str, str] = SERVICES[service]["environment"]
    return found


def image_settings() -> dict[str, str]:
    return dict(re.findall(r"(SPENDSTREAM_\w+)=(\S+)", DOCKERFILE))


def published(service: str) -> list[tuple[str, int, int]]:
    """Address, port outside, port inside."""
    parts = (port.split(":") for port in SERVICES[service].get("ports", []))
    return [(address, int(outside), int(inside)) for address, outside, inside in parts]


def test_it_is_three_brokers_two_apis_two_workers_and_a_store() -> None:
    assert set(SERVICES) == {*BROKERS, *APIS, *WORKERS, *STORES}
    assert [SERVICES[name]["command"] for name in APIS + WORKERS] == [["api"], ["api"], ["worker"], ["worker"]]
    assert SERVICES["store-1"]["command"] == ["store"]


def test_stores_and_apis_see_one_directory() -> None:
    assert all(SHARED in SERVICES[name]["volumes"] for name in APIS + STORES)
    assert {environment(name)["SPENDSTREAM_STORE_DIR"] for name in APIS + STORES} == {"/events"}


@pytest.mark.parametrize("service", APIS + WORKERS + STORES)
def test_every_setting_is_known_and_its_value_right(service: str) -> None:
    used = image_settings() | environment(service)
    assert set(used) <= KNOWN
    assert all(f"`{name}`" in SETTINGS for name in used)
    values = {name.removeprefix("SPENDSTREAM_").lower(): value for name, value in used.items()}
    del values["broker"], values["bootstrap_key"]  # the one is checked below, the other is not in the file
    ServerSettings.model_validate(values)


@pytest.mark.parametrize("service", APIS + WORKERS + STORES)
def test_every_command_is_a_role(service: str) -> None:
    [role] = SERVICES[service]["command"]
    assert role in main.commands
    assert 'ENTRYPOINT ["spendstream"]' in DOCKERFILE


def test_the_key_has_to_be_given() -> None:
    for service in APIS + WORKERS + STORES:
        assert environment(service)["SPENDSTREAM_BOOTSTRAP_KEY"].startswith("${SPENDSTREAM_BOOTSTRAP_KEY:?")


@pytest.mark.parametrize("service", APIS + WORKERS + STORES)
def test_the_product_knows_every_broker_and_waits_for_it(service: str) -> None:
    scheme, _, hosts = environment(service)["SPENDSTREAM_BROKER"].partition("://")
    assert (scheme, hosts.split(";")) == ("kafka", [f"{name}:9092" for name in BROKERS])
    waits = SERVICES[service]["depends_on"]
    assert {name: how["condition"] for name, how in waits.items()} == dict.fromkeys(BROKERS, "service_healthy")


def test_what_is_depended_on_exists_and_has_a_healthcheck() -> None:
    for service in SERVICES.values():
        for target in service.get("depends_on", {}):
            assert SERVICES[target]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("service", APIS)
def test_an_api_is_healthy_when_it_is_ready(service: str) -> None:
    kind, program, option, code = SERVICES[service]["healthcheck"]["test"]
    assert (kind, program, option) == ("CMD", "python", "-c"), (
        "of the image's virtual environment, which leads its PATH"
    )
    compile(code, "healthcheck", "exec")
    port = image_settings()["SPENDSTREAM_HTTP_BIND"].rpartition(":")[2]
    assert f"http://127.0.0.1:{port}/readyz" in code
    assert "ENV PATH=/opt/spendstream/bin:$PATH" in DOCKERFILE.rpartition("FROM ")[2]


def test_the_ports_are_those_that_are_listened_on_and_open_to_this_machine_only() -> None:
    inside = {int(image_settings()[f"SPENDSTREAM_{door}_BIND"].rpartition(":")[2]) for door in ("HTTP", "GRPC")}
    assert f"EXPOSE {' '.join(map(str, sorted(inside)))}" in DOCKERFILE
    outside: list[int] = []
    for name in APIS:
        assert {port for _, _, port in published(name)} == inside
        assert {address for address, _, _ in published(name)} == {"127.0.0.1"}
        outside += [port for _, port, _ in published(name)]
    assert sorted(outside) == [8080, 8081, 50051, 50052]
    assert not any(published(name) for name in BROKERS + WORKERS + STORES)


def test_everything_that_is_kept_is_in_a_volume_of_its_own() -> None:
    used = []
    for name, service in SERVICES.items():
        [mount] = (each for each in service["volumes"] if each != SHARED)
        volume, _, path = mount.partition(":")
        assert path == (environment(name).get("KAFKA_LOG_DIRS") or image_settings()["SPENDSTREAM_DATA_DIR"])
        used.append(volume)
    assert len(set(used)) == len(used)
    assert {*used, "events"} == set(COMPOSE["volumes"])


def test_every_image_has_a_version() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(set(bases)) == 1
    for image in {*bases, *(service["image"] for service in SERVICES.values())}:
        name, _, tag = image.partition(":")
        assert re.match(r"\d+\.\d+\.\d+", tag), image
        assert name.count("/") <= 1, f"{image} names a host"


def test_the_versions_are_those_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {SERVICES[name]["image"] for name in APIS + WORKERS + STORES} == {f"spendstream:{version}"}
    tested = {str(each.findtext("artifactId")): each.findtext("version") for each in ET.parse(POM).iter("dependency")}
    assert {SERVICES[name]["image"] for name in BROKERS} == {f"apache/kafka:{tested['kafka_2.13']}"}


@pytest.mark.parametrize("service", BROKERS)
def test_the_brokers_are_one_quorum(service: str) -> None:
    settings = environment(service)
    node = int(settings["KAFKA_NODE_ID"])
    assert node == BROKERS.index(service) + 1
    voters = [f"{index}@{name}:9093" for index, name in enumerate(BROKERS, start=1)]
    assert settings["KAFKA_CONTROLLER_QUORUM_VOTERS"] == ",".join(voters)
    assert settings["KAFKA_ADVERTISED_LISTENERS"] == f"BROKER://{service}:9092"
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", settings["CLUSTER_ID"])
    listeners = {each.partition(":")[0] for each in settings["KAFKA_LISTENERS"].split(",")}
    protocols = {each.partition(":")[0] for each in settings["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}
    named = {settings["KAFKA_INTER_BROKER_LISTENER_NAME"], settings["KAFKA_CONTROLLER_LISTENER_NAMES"]}
    assert listeners == protocols == named
    own = {"CLUSTER_ID", "KAFKA_NODE_ID", "KAFKA_ADVERTISED_LISTENERS"}
    assert {name: value for name, value in settings.items() if name not in own} == {
        name: value for name, value in environment(BROKERS[0]).items() if name not in own
    }


def test_one_broker_may_be_away_and_nothing_acknowledged_is_lost() -> None:
    settings = environment(BROKERS[0])
    factors = {name: int(value) for name, value in settings.items() if name.endswith("REPLICATION_FACTOR")}
    minima = {name: int(value) for name, value in settings.items() if name.endswith(("MIN_ISR", "INSYNC_REPLICAS"))}
    assert len(factors) == 4
    assert set(factors.values()) == {len(BROKERS)}
    assert len(minima) == 3
    assert set(minima.values()) == {len(BROKERS) - 1}
    assert settings["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"
    assert settings["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_the_image_is_made_of_locked_parts_and_runs_without_privileges() -> None:
    joined = DOCKERFILE.replace("\\\n", " ")
    installs = [step.strip() for line in joined.splitlines() for step in line.split("&&") if "pip install" in step]
    for lock in ("runtime", "build"):
        assert any("--require-hashes" in step and f"requirements/{lock}.txt" in step for step in installs)
    assert all("--require-hashes" in step or "--no-deps" in step for step in installs)
    assert re.search(r"^USER (?!root)\w+$", DOCKERFILE, re.MULTILINE)
    assert all("no-new-privileges:true" in SERVICES[name]["security_opt"] for name in APIS + WORKERS + STORES)


def test_what_the_image_copies_exists_and_is_sent_to_the_builder() -> None:
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(folders["packages"]) <= set(copied)


def test_the_build_is_the_one_that_was_checked() -> None:
    for name in APIS + WORKERS + STORES:
        build = SERVICES[name]["build"]
        root = (ROOT / "deploy" / build["context"]).resolve()
        assert root == ROOT
        assert (root / build["dockerfile"]).is_file()
