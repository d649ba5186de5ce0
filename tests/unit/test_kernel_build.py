"""The compiled kernel is in a wheel where it can be built, and nothing is missing where it cannot."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from processor.core.kernel.loaded import RUNNING
from server.cli.commands import main
from tools import build_kernel
from tools.build_kernel import FILE, FOLDER, Hook

ROOT = Path(__file__).resolve().parents[2]


def hook(root: Path) -> Hook:
    return Hook(str(root), {}, None, None, str(root), "wheel")  # type: ignore[arg-type]  # it asks for neither of them


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(root: Path, into: Path, *, sanitize: bool = False) -> Path:
        raise SystemExit("error: command 'cc' failed:\n  Python.h: No such file or directory")

    monkeypatch.setattr(build_kernel, "build", fails)
    monkeypatch.delenv("SPENDSTREAM_PURE", raising=False)
    monkeypatch.delenv("REQUIRE_KERNEL", raising=False)


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize("version", ["standard", "editable"])
def test_without_a_compiler_the_wheel_is_pure_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    old = tmp_path / FOLDER / FILE
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of another source")
    os.utime(old, (0, 0))
    (tmp_path / FOLDER / "compiled.pyx").touch()
    build_data: dict[str, Any] = {"force_include": {}}
    hook(tmp_path).initialize(version, build_data)
    assert build_data == {"force_include": {}}
    assert "no compiled kernel" in (said := capsys.readouterr().err)
    assert "Python.h: No such file" in said
    assert len(said.splitlines()) == 1
    assert old.exists() == (version == "standard")


@pytest.mark.usefixtures("without_compiler")
def test_where_it_must_be_there_its_lack_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_KERNEL", "1")
    with pytest.raises(SystemExit, match=r"Python\.h"):
        hook(tmp_path).initialize("standard", {"force_include": {}})


def test_a_built_one_makes_a_wheel_for_all_pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tmp_path / "built.so"
    monkeypatch.setattr(build_kernel, "build", lambda root, into: built)
    monkeypatch.delenv("SPENDSTREAM_PURE", raising=False)
    build_data: dict[str, Any] = {"force_include": {}}
    hook(tmp_path).initialize("standard", build_data)
    assert build_data["pure_python"] is False
    assert build_data["tag"].startswith("cp311-abi3-")
    assert build_data["force_include"] == {str(built): f"{FOLDER}/{FILE}"}


def test_it_can_be_kept_out() -> None:
    asked = "from processor.core.kernel.loaded import RUNNING; print(RUNNING)"
    variables = {**os.environ, "SPENDSTREAM_PURE": "1"}
    found = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, env=variables, capture_output=True, check=True)
    assert found.stdout == b"pure\n"


def test_the_version_says_which_one_runs() -> None:
    done = CliRunner().invoke(main, ["version"])
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == f"kernel   {RUNNING}"


@pytest.mark.skipif(os.environ.get("REQUIRE_KERNEL") != "1", reason="REQUIRE_KERNEL=1 says that it must be there")
def test_it_is_there() -> None:
    is_kept_out = os.environ.get("SPENDSTREAM_PURE") == "1"
    assert (RUNNING == "pure") == is_kept_out
