"""The stream application: the pure core, the log, the state behind it, and the Faust app that ties them together."""

import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

_KERNEL: Final = Path(__file__).parent / "core" / "kernel"


def is_stale(folder: Path = _KERNEL) -> bool:
    """Return whether the compiled kernel in a checkout was built from another source than the one that lies beside it.

    An installed wheel has no source of it; there this costs a look for a file, and in a checkout 1 ms. The kernel has
    the digest of its source in it (tools/build_kernel.py), and is not loaded to find out.
    """
    source, built = folder / "compiled.pyx", folder / "compiled.abi3.so"
    if not source.exists() or not built.exists():
        return False
    digest = sha256(b"".join(path.read_bytes() for path in [source, *sorted(folder.glob("*.pxi"))])).hexdigest()
    return digest.encode() not in built.read_bytes()


def _keep_the_kernel_out() -> None:
    """Here, before anything of the core, which knows no environment: an import of it fails."""
    cast(dict[str, Any], sys.modules)["processor.core.kernel.compiled"] = None


if os.environ.get("SPENDSTREAM_PURE") == "1":
    _keep_the_kernel_out()
elif is_stale():
    _keep_the_kernel_out()
    sys.stderr.write(
        "spendstream: the compiled kernel was built from another source than this one, so that Python does its work, "
        "to the same bytes and slower: `make setup` builds it anew\n"
    )
