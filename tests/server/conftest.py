"""One server for all tests that leave it as it is."""

from collections.abc import Iterator

import pytest

from infinitevl.server.settings import Limits
from tests.server.serving import Running, running


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    limits = Limits(streams_per_key=10**6, streams=10**6)  # not every test closes its streams
    with running(limits=limits) as started:
        yield started
