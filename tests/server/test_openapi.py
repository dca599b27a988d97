"""Requests of every shape that the description allows, and of many that it does not: never a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.server.serving import Running, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NUM_REQUESTS = 40  # of each call


@pytest.fixture(scope="module")
def fresh():
    with running() as started:
        yield started


def test_no_request_makes_the_server_fail(fresh: Running) -> None:
    description = fresh.client.get("/openapi.json").json()
    operations = [found.ok() for found in schemathesis.openapi.from_dict(description).get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:

        @settings(max_examples=NUM_REQUESTS, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def send(case) -> None:
            response = case.call(base_url=fresh.url, timeout=60)
            assert response.status_code < 500, (case.method, case.path, response.text)

        send()
    assert fresh.client.get("/health").status_code == 200
