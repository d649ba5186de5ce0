"""Projects of their own on a server that tests share: for tests that need nothing but a beginning without events."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server


@dataclass(frozen=True)
class Tenant:
    """A project, in an organization of the same name, with a key that may send and read."""

    server: Server
    name: str
    key: str

    @property
    def http(self) -> str:
        """host:port."""
        return self.server.http

    @property
    def grpc(self) -> str:
        """host:port."""
        return self.server.grpc

    def cli(self, *arguments: str) -> Any:
        """Run a command beside the server; it names the project or organization itself."""
        return self.server.cli(*arguments)


class Tenants:
    """Makes tenants on a server, each by one request."""

    def __init__(self, server: Server) -> None:
        self._server = server
        done = server.cli("keys", "create", "--scopes", "admin", "--all-orgs", "--json")
        assert done.returncode == 0, done.stderr
        self._admin: str = json.loads(done.stdout)["key"]

    def new(self) -> Tenant:
        """A project that has no events."""
        name = f"tenant-{uuid4().hex[:12]}"
        asked = urllib.request.Request(
            f"http://{self._server.http}/v1/admin/keys",
            json.dumps({"project": name, "organization": name}).encode(),
            {"x-api-key": self._admin, "Content-Type": "application/json"},
        )
        deadline = time.monotonic() + PROCESS_PATIENCE
        while True:
            try:
                with urllib.request.urlopen(asked, timeout=PROCESS_PATIENCE) as answer:
                    return Tenant(self._server, name, json.loads(answer.read())["key"])
            except urllib.error.HTTPError as error:  # a key of the command line is known within a second
                if error.code != 401 or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)
