"""The compiled kernel is in a wheel where it can be built, and nothing is missing where it cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import processor
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
    made = hook(tmp_path)
    made.initialize(version, build_data)
    assert made.scratch is not None
    assert not Path(made.scratch).exists()
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
    made = hook(tmp_path)
    made.initialize("standard", build_data)
    made.finalize("standard", build_data, "")
    assert made.scratch is not None
    assert not Path(made.scratch).exists()
    assert build_data["pure_python"] is False
    assert build_data["tag"].startswith("cp311-abi3-")
    assert build_data["force_include"] == {str(built): f"{FOLDER}/{FILE}"}


def test_it_can_be_kept_out() -> None:
    asked = "from processor.core.kernel.loaded import RUNNING; print(RUNNING)"
    variables = {**os.environ, "SPENDSTREAM_PURE": "1"}
    found = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, env=variables, capture_output=True, check=True)
    assert found.stdout == b"pure\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package's start and of the kernel's folder."""
    shutil.copytree(ROOT / FOLDER, tmp_path / FOLDER)
    for folder in (Path("processor"), Path("processor/core")):
        shutil.copy(ROOT / folder / "__init__.py", tmp_path / folder)
    return tmp_path


def running_in(checkout: Path) -> tuple[str, str]:
    """Which kernel runs there, and what is said of it."""
    asked = "from processor.core.kernel.loaded import RUNNING; print(RUNNING)"
    variables = {name: value for name, value in os.environ.items() if name != "SPENDSTREAM_PURE"}
    found = subprocess.run(
        [sys.executable, "-P", "-c", asked],
        cwd=checkout,
        env=variables | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip(), found.stderr


@pytest.mark.skipif(RUNNING == "pure", reason="there is no compiled kernel")
def test_one_that_was_built_from_another_source_does_not_run_and_is_said(checkout: Path) -> None:
    """As after a pull, without `make setup`: newer Python would call what the kernel does not have."""
    assert not processor.is_stale()
    assert running_in(checkout) == ("compiled", "")
    part = checkout / FOLDER / "view.pxi"
    source = part.read_text()
    part.write_text(source + "\n")
    which, said = running_in(checkout)
    assert which == "pure"
    assert said.count("\n") == 1
    assert "another source" in said
    assert "`make setup`" in said
    part.write_text(source)
    assert running_in(checkout) == ("compiled", "")
    for each in (checkout / FOLDER).glob("*.p[xy][xi]"):  # as in a wheel
        each.unlink()
    assert running_in(checkout) == ("compiled", "")


@pytest.mark.skipif(RUNNING == "pure", reason="there is no compiled kernel")
def test_one_of_another_source_is_built_anew_however_new_it_is(checkout: Path) -> None:
    os.utime(checkout / FOLDER / FILE)
    assert build_kernel.is_current(checkout)
    part = checkout / FOLDER / "view.pxi"
    part.write_text(part.read_text() + "\n")
    os.utime(part, (0, 0))
    assert not build_kernel.is_current(checkout)


def test_what_was_compiled_of_other_c_or_in_another_way_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(source: bytes, *options: str) -> Path | None:
        made = SimpleNamespace(define_macros=[], extra_compile_args=list(options), extra_link_args=[])
        return build_kernel.kept(source, made)

    for name in (build_kernel.CACHE, "CFLAGS"):
        monkeypatch.delenv(name, raising=False)
    assert kept(b"int x;", "-O3") is None
    monkeypatch.setenv(build_kernel.CACHE, str(tmp_path))
    found = [kept(b"int x;", "-O3"), kept(b"int y;", "-O3"), kept(b"int x;", "-O1")]
    monkeypatch.setenv("CFLAGS", "-march=native")
    found.append(kept(b"int x;", "-O3"))
    assert len(set(found)) == 4
    monkeypatch.delenv("CFLAGS")
    assert kept(b"int x;", "-O3") == found[0]


def test_c_that_was_made_of_another_source_is_not_used(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(build_kernel.CACHE, raising=False)
    assert build_kernel.translation_of(checkout) is None
    monkeypatch.setenv(build_kernel.CACHE, str(checkout / "cache"))
    found = [build_kernel.translation_of(checkout)]
    assert found[0] == build_kernel.translation_of(ROOT)
    for part in ("compiled.pyx", "view.pxi"):
        source = checkout / FOLDER / part
        source.write_text(source.read_text() + "\n")
        found.append(build_kernel.translation_of(checkout))
    monkeypatch.setattr(build_kernel, "version", lambda _: "0")
    found.append(build_kernel.translation_of(checkout))
    assert len(set(found)) == 4


def test_the_version_says_which_one_runs() -> None:
    done = CliRunner().invoke(main, ["version"])
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == f"kernel   {RUNNING}"


@pytest.mark.skipif(os.environ.get("REQUIRE_KERNEL") != "1", reason="REQUIRE_KERNEL=1 says that it must be there")
def test_it_is_there() -> None:
    is_kept_out = os.environ.get("SPENDSTREAM_PURE") == "1"
    assert (RUNNING == "pure") == is_kept_out
