"""What the folders promise each other. import-linter (pyproject.toml) checks the layers; here is what it cannot see."""

import ast
import importlib
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tools.architecture import DOCUMENT, replaced

ROOT = Path(__file__).resolve().parent.parent
OURS = ("protos", "processor", "server")

# Anything that has a clock, an environment, chance or a socket comes to processor.core as an argument.
IMPURE = {
    *("aiohttp", "aiokafka", "apsw", "asyncio", "concurrent", "faust", "grpc", "mode", "multiprocessing", "os"),
    *("random", "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "structlog"),
    *("subprocess", "tempfile", "threading", "time", "uvloop"),
}
CORE_MAY_USE = ("processor.core", "protos")  # messages are data; import-linter sees to it that no gRPC comes with them
CLOCKS = {"now", "utcnow", "today", "uuid1", "uuid4"}

# Rooms of server that are the same for every API: what a wire is called belongs in http_api, grpc_api and status.
NO_WIRE = ("alerts", "backup", "ingest", "limits", "live", "processes", "reads", "tenancy")
WIRES = ("aiohttp.web", "grpc")


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if not path.stem.endswith(("_pb2", "_pb2_grpc")))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Every imported name in full, wherever in the file: `from a.b import c` gives `a.b.c`."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("package", OURS)
def test_our_names_are_ours(package: str) -> None:
    """PyPI has distributions called processor and protos: installed beside ours, they would overwrite its files."""
    origin = importlib.import_module(package).__file__
    assert origin is not None
    assert Path(origin) == ROOT / package / "__init__.py"
    assert package not in {(each.metadata["Name"] or "").lower() for each in metadata.distributions()}
    assert set(metadata.packages_distributions().get(package, [])) <= {"spendstream"}


def test_the_command_is_installed() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="spendstream")
    assert script.value == "server.__main__:main"


@pytest.mark.parametrize("folder", [*OURS, "tests", "tools"])
def test_no_file_is_named_like_a_standard_module(folder: str) -> None:
    stems = {path.stem if path.stem != "__init__" else path.parent.name for path in (ROOT / folder).rglob("*.py")}
    assert not stems & (sys.stdlib_module_names - {"__main__"})


@pytest.mark.parametrize("folder", [*OURS, "tests", "tools"])
def test_every_folder_with_python_in_it_is_a_package(folder: str) -> None:
    folders = {path.parent for path in (ROOT / folder).rglob("*.py")}
    assert [name_of(each) for each in sorted(folders) if not (each / "__init__.py").exists()] == []


# Names that stand for one thing in several places: what a room has by its role, and the two adapters of one port.
ROLES = {"__init__", "__main__", "errors", "settings"}
ADAPTERS = ("processor/log/embedded", "processor/log/kafka")
PORTS = {"log", "tail", "topics", "transport"}


def test_no_two_modules_have_one_name() -> None:
    """A command of the command line is called like what it is about: `server/cli` does not count."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in [*sources("processor"), *sources("server")]:
        folder = name_of(path.parent)
        if path.stem in ROLES or folder == "server/cli" or (folder in ADAPTERS and path.stem in PORTS):
            continue
        places[path.stem].append(name_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_two_classes_have_one_name() -> None:
    """Those that a module keeps for itself (`_Name`) do not count, nor those that Faust finds by their name."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in [*sources("processor"), *sources("server")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name_of(path))
    of_faust = {"Consumer", "Producer", "Transport"}
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in of_faust} == {}


@pytest.mark.parametrize("path", sources("processor/core"), ids=name_of)
def test_core_is_pure(path: Path) -> None:
    for module in imports(path):
        assert module.partition(".")[0] not in IMPURE, f"{module} has no place in processor.core"
        assert not is_within(module, OURS) or is_within(module, CORE_MAY_USE), f"core reaches out to {module}"
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"line {node.lineno} awaits"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in CLOCKS, f"line {node.lineno} calls {node.func.attr}(): pass it in"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "input", "print"}, f"line {node.lineno} calls {node.func.id}()"


@pytest.mark.parametrize("path", [each for room in NO_WIRE for each in sources(f"server/{room}")], ids=name_of)
def test_what_every_api_needs_knows_none(path: Path) -> None:
    assert [module for module in imports(path) if is_within(module, WIRES)] == []


@pytest.mark.parametrize("folder", OURS[1:])
def test_every_room_says_what_it_is_for(folder: str) -> None:
    """In one line, with what it may import; docs/internals/architecture.md is made of these lines."""
    for path in sources(folder):
        if path.name == "__init__.py" and path.parent.parent != ROOT:
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert len(text.splitlines()) == 1, name_of(path)
            assert "May import " in text, name_of(path)


def test_the_document_of_the_rooms_is_current() -> None:
    assert DOCUMENT.read_text() == replaced(DOCUMENT.read_text()), "run `make docs`"


ROW_OF_PATH = r"^\| `([\w.]+)` \|"


def test_the_functions_of_the_path_exist() -> None:
    """And are few enough to be followed."""
    text = (DOCUMENT.parent / "the-path.md").read_text()
    names = re.findall(ROW_OF_PATH, text, re.MULTILINE)
    for name in names:
        parts = name.split(".")
        depth = max(n for n in range(1, len(parts)) if (ROOT / Path(*parts[:n]).with_suffix(".py")).exists())
        found: object = importlib.import_module(".".join(parts[:depth]))
        for part in parts[depth:]:
            found = getattr(found, part)
        assert callable(found), name
    assert 40 <= len(names) <= 60
    _, _, in_one_sitting = text.partition("## In one sitting")
    assert len(re.findall(ROW_OF_PATH, in_one_sitting.partition("\n## ")[0], re.MULTILINE)) == 15


def test_layers() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("path", sources("server/cli"), ids=name_of)
def test_commands_print_by_one_module(path: Path) -> None:
    """What came from outside must be text on a terminal: `server/cli/output.py` and `sheet.py`, for tables, do that if
    nothing goes past them."""
    if path.name in {"output.py", "sheet.py"}:
        return
    printers = ("rich.console", "rich.table", "rich.text")
    assert [module for module in imports(path) if is_within(module, printers)] == []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"echo", "secho", "stderr"}, f"line {node.lineno} prints by itself"
        if isinstance(node, ast.Name):
            assert node.id != "print", f"line {node.lineno} prints by itself"
