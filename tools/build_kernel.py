"""Builds the compiled kernel: the hook of hatchling, and `python -m tools.build_kernel DIRECTORY [--sanitize]`.

A wheel has it where a C compiler and Python.h are, and is pure where they are not; an editable install has it beside
its source. It is one file for all Pythons from 3.11 on. SPENDSTREAM_PURE=1 builds none, and with REQUIRE_KERNEL=1 it is
an error if there can be none. SPENDSTREAM_KERNEL_CACHE names a directory of what was made before from the same source:
of the C, and of what was compiled from it.
"""

import argparse
import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER: Final = Path("processor/core/kernel")
FILE: Final = "compiled.abi3.so"
CACHE: Final = "SPENDSTREAM_KERNEL_CACHE"
OLDEST: Final = (3, 11)
"""The Python whose stable ABI it uses."""
FLAGS: Final = ["-O3", "-fno-strict-aliasing", "-fwrapv", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter"]
SANITIZED: Final = [
    *("-Og", "-g1"),  # -O1 and the names of variables, which no report shows, take four times as long to compile
    *("-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]


def sources(root: Path) -> list[Path]:
    """What the kernel is made from, this file included."""
    return [*sorted((root / FOLDER).glob("*.px[di]")), root / FOLDER / "compiled.pyx", Path(__file__)]


def digest(root: Path) -> str:
    """Of the kernel's own source. It is compiled in, and `processor.is_stale` makes it again and looks for it."""
    parts = [root / FOLDER / "compiled.pyx", *sorted((root / FOLDER).glob("*.pxi"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()


def build(root: Path, into: Path, *, sanitize: bool = False) -> Path:
    """Compile the kernel of a source tree into a directory. Raises whatever Cython, setuptools or the compiler do."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    hexadecimal = f"0x{OLDEST[0]:02X}{OLDEST[1]:02X}0000"
    extension = Extension(
        "processor.core.kernel.compiled",
        [str(FOLDER / "compiled.pyx")],
        define_macros=[("Py_LIMITED_API", hexadecimal), ("KERNEL_SOURCE", f'"{digest(root)}"')],
        py_limited_api=True,
        extra_compile_args=SANITIZED if sanitize else FLAGS,
        extra_link_args=["-fsanitize=address,undefined"] if sanitize else [],
    )
    before = Path.cwd()
    os.chdir(root)
    try:
        translated = into / "c" / FOLDER / "compiled.c"
        translation = translation_of(root)
        if translation is not None and translation.exists():
            translated.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(translation, translated)
            extension.sources[:] = [str(translated)]
            modules = [extension]
        else:
            modules = cast(Any, cythonize)([extension], build_dir=str(into / "c"), quiet=True)
            _keep(translated, translation)
        command = build_ext(Distribution({"name": "spendstream", "ext_modules": modules}))
        command.build_lib, command.build_temp = str(into), str(into / "o")
        command.ensure_finalized()
        built = into / FOLDER / FILE
        cached = kept(translated.read_bytes(), extension)
        if cached is not None and cached.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(cached, built)
            return built
        command.run()
        _keep(built, cached)
        return built
    finally:
        os.chdir(before)


def _keep(made: Path, cached: Path | None) -> None:
    """Copy what was made into the cache, where it appears whole or not at all."""
    if cached is not None:
        cached.parent.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(f".{os.getpid()}")
        shutil.copy(made, part)
        part.rename(cached)


def translation_of(root: Path) -> Path | None:
    """Return the file in the cache for the C that Cython makes of the kernel's source."""
    cache = os.environ.get(CACHE)
    if cache is None:
        return None
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources(root)]
    made_by = repr((version("cython"), digests))
    return Path(cache) / f"{hashlib.sha256(made_by.encode()).hexdigest()}.c"


def kept(source: bytes, extension: Any) -> Path | None:
    """Return the file in the cache for what Cython has made, and all that decides what a compiler makes of it."""
    cache = os.environ.get(CACHE)
    if cache is None:
        return None
    compiler = sysconfig.get_config_var("CC"), os.environ.get("CC"), os.environ.get("CFLAGS"), os.environ.get("LDFLAGS")
    options = extension.define_macros, extension.extra_compile_args, extension.extra_link_args, sys.version, compiler
    return Path(cache) / f"{hashlib.sha256(source + repr(options).encode()).hexdigest()}.so"


def is_current(root: Path) -> bool:
    """Whether the kernel beside its source is made from it, and newer than all that it is made from."""
    built = root / FOLDER / FILE
    if not built.exists() or digest(root).encode() not in built.read_bytes():
        return False
    return built.stat().st_mtime > max(path.stat().st_mtime for path in sources(root))


class Hook(BuildHookInterface[Any]):
    """Called by hatchling for each wheel, the one of an editable install included."""

    PLUGIN_NAME = "custom"
    scratch: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the kernel and put it into the wheel, or beside its source; say so if there is none."""
        root, is_editable = Path(self.root), version == "editable"
        if os.environ.get("SPENDSTREAM_PURE") == "1" or (is_editable and is_current(root)):
            return
        beside = root / FOLDER / FILE
        if is_editable:
            beside.unlink(missing_ok=True)  # one of another source would be believed to be this one
        self.scratch = tempfile.mkdtemp(prefix="spendstream-kernel-")
        try:
            built = build(root, Path(self.scratch))
        except (Exception, SystemExit) as error:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if os.environ.get("REQUIRE_KERNEL") == "1":
                raise
            why = " ".join(str(error).split())
            print(f"spendstream: no compiled kernel, Python does its work ({why:.200})", file=sys.stderr)
            return
        if is_editable:
            shutil.move(built, beside)
            shutil.rmtree(self.scratch, ignore_errors=True)
            return
        platform = sysconfig.get_platform().translate(str.maketrans("-.", "__"))
        build_data["pure_python"] = False
        build_data["tag"] = f"cp{OLDEST[0]}{OLDEST[1]}-abi3-{platform}"
        build_data["force_include"][str(built)] = str(FOLDER / FILE)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the build has left."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.build_kernel", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sanitize", action="store_true", help="with the address sanitizer, for the fuzzer")
    options = parser.parse_args()
    print(build(Path.cwd(), options.directory.resolve(), sanitize=options.sanitize))
