from collections.abc import AsyncIterator

import pytest

from tests.contract.doors import Doors, open_doors


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    async with open_doors() as opened:
        yield opened
