"""The guide for OpenTelemetry: each program and configuration in it is run, against a stand-in for the models."""

import re
import tempfile
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.support.model_api import TEXT, Call, ModelApi
from tests.support.priced_projects import Project, client_of, sums_of
from tests.support.server import Server
from tools.collector import Collector
from tools.otlp_clients import ROOT, javascript_client, python_client
from tools.record_spans import client_environment, run_client

pytestmark = pytest.mark.slow

GUIDE: Final = (ROOT / "docs" / "guides" / "opentelemetry.md").read_text()
TRACING, *PROGRAMS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
(JAVASCRIPT,) = re.findall(r"^```js\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
(CONFIG,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
GREETING: Final = Call("openai", "gpt-4o-2024-08-06", "chat")


def title_of(program: str) -> str:
    titles: list[str] = re.findall(r"^## (.*)", GUIDE[: GUIDE.index(program)], re.MULTILINE)
    return titles[-1].replace(" ", "-")


@pytest.mark.otlp_clients
@pytest.mark.parametrize("program", PROGRAMS, ids=map(title_of, PROGRAMS))
async def test_a_python_program_of_the_guide(priced: Server, models: ModelApi, tmp_path: Path, program: str) -> None:
    project = Project(priced, f"guide-{title_of(program)}")
    (tmp_path / "tracing.py").write_text(TRACING)
    (tmp_path / "program.py").write_text(program)
    variables = guide_variables(project, models)
    said = await run_client([python_client()[0], str(tmp_path / "program.py")], variables)
    await assert_one_greeting(project, models, said)


@pytest.mark.otlp_clients
async def test_the_javascript_program_of_the_guide(priced: Server, models: ModelApi) -> None:
    project = Project(priced, "guide-js")
    packages = Path(javascript_client()[-1]).parent
    with tempfile.TemporaryDirectory(dir=packages) as directory:  # Node looks for packages above the program
        program = Path(directory) / "program.mjs"
        program.write_text(JAVASCRIPT)
        said = await run_client(["node", str(program)], guide_variables(project, models))
    await assert_one_greeting(project, models, said)


@pytest.mark.otlp_clients
@pytest.mark.collector
async def test_the_collector_of_the_guide(priced: Server, models: ModelApi, tmp_path: Path) -> None:
    project = Project(priced, "guide-collector")
    config = yaml.safe_load(CONFIG)
    assert config.pop("receivers")["otlp"]["protocols"].keys() == {"grpc", "http"}
    config["extensions"]["file_storage"]["directory"] = "queue"
    config["exporters"]["otlp_http"]["endpoint"] = f"http://{priced.http}"
    with Collector(tmp_path / "collector", config, variables={"SPENDSTREAM_KEY": project.key}) as collector:
        variables = client_environment(models, collector.http, {})
        await run_client([*python_client(), "many-openai-calls", "Hello"], variables)
        assert await project.sums(sums_of([GREETING])) == sums_of([GREETING]), collector.log()


def guide_variables(project: Project, models: ModelApi) -> dict[str, str]:
    """What a reader sets, and a provider that is a stand-in."""
    provider = {
        "OPENAI_API_KEY": "a-key-for-tests",
        "OPENAI_BASE_URL": f"{models.url}/v1",
        "OPENAI_API_BASE": f"{models.url}/v1",
        "SPENDSTREAM_KEY": project.key,
    }
    return client_of(project, models, f"http://{project.running.http}", **provider)


async def assert_one_greeting(project: Project, models: ModelApi, said: str) -> None:
    assert TEXT in said
    assert len(models.calls) == 1
    assert await project.sums(sums_of([GREETING])) == sums_of([GREETING]), said
