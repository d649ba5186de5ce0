"""Imports that cost no more CPU and memory than what they load: of libraries without what this program never calls, and
without looking for garbage in modules.
"""

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def without_collections() -> Iterator[None]:
    """Have no garbage looked for while a role loads its modules, nor later in what is loaded: a seventh of the time.

    For the modules of a process that begins: what is garbage before the block stays for good.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Have what is imported inside of the block find these modules not installed, unless they are loaded already."""
    with _in_place_of(dict.fromkeys(names)):
        yield


@contextmanager
def stand_ins(modules: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Have what is imported inside of the block get these names from these modules, which stay unloaded.

    Modules that are loaded already are used as they are. A name that is not given raises `ImportError` at its import.
    """
    made: dict[str, ModuleType | None] = {}
    for name, content in modules.items():
        made[name] = module = ModuleType(name)
        vars(module).update(content)
    with _in_place_of(made):
        yield


@contextmanager
def _in_place_of(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    absent = [name for name in modules if name not in sys.modules]
    loaded: dict[str, Any] = sys.modules
    loaded.update({name: modules[name] for name in absent})  # None: it cannot be imported
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
