"""Processes that compute beside ingest have a lower priority, and long slices where the system knows them."""

import json
import platform
import subprocess
import sys

import pytest

from processor import background

_READ = """
import json, os, threading
from processor import background

found = []
before = os.nice(0)
taken = background.step_back(3)
thread = threading.Thread(target=lambda: found.append(os.nice(0)))
thread.start()
thread.join()
print(json.dumps([taken, os.nice(0) - before, found[0] - before]))
"""


def test_the_priority_is_lower_and_threads_inherit_it() -> None:
    done = subprocess.run([sys.executable, "-c", _READ], check=True, capture_output=True, text=True)
    taken, own, inherited = json.loads(done.stdout)
    assert (own, inherited) == (3, 3)
    if sys.platform == "linux" and platform.machine() == "x86_64" and not platform.release().startswith(("4.", "5.")):
        assert taken


def test_a_machine_without_the_call_has_the_priority_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "sparc")
    assert not background.step_back(0)
