"""The compiled kernel, if it runs: None where its Python twin does all the work."""

from types import ModuleType
from typing import Final, Literal


def _loaded() -> ModuleType | None:
    try:
        from processor.core.kernel import compiled
    except ImportError:
        return None
    return compiled


kernel: Final = _loaded()

RUNNING: Final[Literal["compiled", "pure"]] = "pure" if kernel is None else "compiled"
"""`pure`: it was not built, as there was no compiler, or does not load here, or was
built from another source than a checkout has now, or SPENDSTREAM_PURE=1 keeps it out."""
