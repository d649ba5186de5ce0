from collections.abc import AsyncIterator

import pytest

from tests.contract.doors import Doors, open_doors


@pytest.fixture
async def doors(request: pytest.FixtureRequest) -> AsyncIterator[Doors]:
    """Both APIs, or those that the module says its tests need: `APIS`."""
    async with open_doors(apis=getattr(request.module, "APIS", ("http", "grpc"))) as opened:
        yield opened
