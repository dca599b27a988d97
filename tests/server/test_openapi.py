"""Requests of every shape that the description allows, and of many that it does not: never a 5xx."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error

from tests.server.serving import Running, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NUM_REQUESTS = 40  # of each call


@pytest.fixture(scope="module")
def fresh():
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def schema(fresh: Running):
    description = json.dumps(fresh.client.get("/openapi.json").json())
    found = schemathesis.openapi.from_dict(json.loads(description))
    found.config.update(base_url=fresh.url)
    return found


def test_no_request_makes_the_server_fail(fresh: Running, schema) -> None:
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=NUM_REQUESTS,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def send(case) -> None:
            response = case.call(base_url=fresh.url, timeout=60)
            not_a_server_error(None, response, case)

        operation.as_strategy()
        schemathesis_test = settings(max_examples=NUM_REQUESTS, deadline=None)(_given(operation)(send))
        schemathesis_test()
        checked += 1
    assert checked >= 12
    assert fresh.client.get("/health").status_code == 200


def _given(operation):
    from hypothesis import given

    return given(case=operation.as_strategy())
