"""One server for all tests that leave it as it is."""

from collections.abc import Iterator

import pytest

from tests.server.serving import Running, running


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with running() as started:
        yield started
