"""What a role must not load before it is ready: it is CPU at each start, and memory for as long as the role runs."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from processor import memory
from processor.event_store.__main__ import ARROW_MEMORY
from processor.lean_imports import stand_ins, without, without_collections
from processor.log.embedded.log import Log
from tests.support.patience import PROCESS_PATIENCE

SERVER = {"aiohttp", "duckdb", "grpc", "prometheus_client", "pyarrow"}
STREAM = {"aiokafka", "confluent_kafka", "faust"}
NEVER = {"pydantic_settings", "pygments", "rich"}


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("server.cli.commands, server.supervisor", SERVER | STREAM | {"numpy"}),
        ("server.cli.commands, server.api", STREAM | {"duckdb", "pyarrow"}),
        ("processor.__main__", SERVER | {"aiokafka", "confluent_kafka"}),
        ("processor.event_store.__main__", SERVER | {"aiokafka", "confluent_kafka"}),
        ("server.cli.commands, server.explore.process", STREAM | {"aiohttp", "grpc", "prometheus_client"}),
    ],
)
def test_a_role_loads_nothing_that_it_does_not_use(module: str, unused: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({sorted(unused | NEVER)})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
@pytest.mark.skipif(not memory.can_trim(), reason="this C library gives nothing back")
def test_arrow_takes_the_memory_of_the_event_store_from_the_system(tmp_path: Path) -> None:
    """Its own default keeps what the thread of the cuts has left free."""
    code = """
from processor.event_store import __main__ as role
def run(work):
    import pyarrow
    print(pyarrow.default_memory_pool().backend_name, flush=True)
    work.close()
    return 0
role.asyncio.run = run
role.step_back = lambda nice: None
role.main()
"""
    Log(tmp_path, partitions=1).close()
    environment = {name: value for name, value in os.environ.items() if name != ARROW_MEMORY[0]}
    environment |= {"SPENDSTREAM_DATA_DIR": str(tmp_path), "SPENDSTREAM_CONFIG": os.devnull}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=environment, timeout=PROCESS_PATIENCE
    )
    assert done.stdout.split() == ["system"]


def test_no_garbage_is_looked_for_while_modules_are_loaded() -> None:
    frozen = gc.get_freeze_count()
    try:
        with without_collections():
            assert not gc.isenabled()
            loaded: list[list[int]] = [[]]
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen, f"{loaded} is walked again and again"
    finally:
        gc.unfreeze()


def test_a_module_is_absent_inside_of_the_block_only() -> None:
    sys.modules.pop("this", None)
    with without("this", "json"):
        with pytest.raises(ImportError):
            __import__("this")
        assert __import__("json").loads("1") == 1, "what is loaded already stays"
    assert "this" not in sys.modules


def test_a_stand_in_is_there_inside_of_the_block_only() -> None:
    with stand_ins({"no_such": {}, "no_such.client": {"Session": int}, "json": {"loads": None}}):
        assert __import__("no_such.client", fromlist=["Session"]).Session is int
        with pytest.raises(ImportError):
            exec("from no_such.client import Other")
        assert __import__("json").loads("1") == 1
    with pytest.raises(ImportError):
        __import__("no_such.client")
