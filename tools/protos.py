"""Generates the modules and type stubs of protos/**/*.proto: `python -m tools.protos [--check]`.

They are committed, because a user of the source has no protoc; `--check` fails where they differ from what the .proto
files give.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from google.rpc import status_pb2

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")
# google/rpc/*.proto come with googleapis-common-protos, google/protobuf/*.proto with grpcio-tools itself.
GOOGLE_RPC = Path(status_pb2.__file__).parent.parent.parent


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "protos").rglob("*.proto"))


def generate(target: Path) -> None:
    """Writes below `target`. protoc runs in the project's root, so that the modules import each other as `protos.…`."""
    scripts = Path(sys.executable).parent
    # fmt: off
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", "-I", str(GOOGLE_RPC),
         f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
         f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
         f"--python_out={target}", f"--grpc_python_out={target}",
         f"--mypy_out=quiet:{target}", f"--mypy_grpc_out=quiet:{target}", *sources()],
        cwd=ROOT, check=True,
    )
    # fmt: on


def generated(root: Path) -> dict[str, str]:
    found = (path for pattern in GENERATED for path in (root / "protos").rglob(pattern))
    return {str(path.relative_to(root)): path.read_text() for path in found}


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = generated(Path(folder)), generated(ROOT)
    drifted = sorted(path for path in fresh.keys() | committed.keys() if fresh.get(path) != committed.get(path))
    if "--check" in arguments:
        stale = "\n".join(f"{path} is not what the .proto files give: make protos" for path in drifted)
        print(stale or "The stubs are what the .proto files give.")
        return 1 if drifted else 0
    for path in drifted:
        if path in fresh:
            (ROOT / path).write_text(fresh[path])
        else:
            (ROOT / path).unlink()
        print(f"{'wrote' if path in fresh else 'removed'} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
