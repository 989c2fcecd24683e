"""The starter model in a worker process, one for all tests of a module."""

import pytest
import pytest_asyncio

from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from tests.inference.engine_on_starter import STARTER
from tests.inference.starter_host import Starter


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host():
    host = EngineHost(STARTER, EngineSettings())
    host.start()
    await host.wait_until_ready()
    yield host
    await host.stop()


@pytest.fixture
def starter(host):
    return Starter(host)
