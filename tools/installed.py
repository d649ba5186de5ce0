"""Imports every module of an installed spendstream; .ci/run copies this out of the tree and runs it there with -I."""

import importlib
import pkgutil
import sys
from importlib import metadata

PACKAGES = ("protos", "processor", "server")


def main() -> int:
    imported = 0
    for name in PACKAGES:
        package = importlib.import_module(name)
        assert "site-packages" in (package.__file__ or ""), f"{name} came from {package.__file__}"
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
                imported += 1
    for entry in metadata.entry_points(group="faust.transports", name="spendstream-sqlite"):
        print(f"transport: {entry.load()}")
    files = importlib.import_module("server.http_api.static_files").load()
    assert {"index.html", "main.js", "style.css", "uplot.js", "uplot.css"} <= set(files), (
        f"the page has only {set(files)}"
    )
    print(f"{imported} modules of {metadata.metadata('spendstream')['Name']} {metadata.version('spendstream')} import")
    return 0


if __name__ == "__main__":
    sys.exit(main())
