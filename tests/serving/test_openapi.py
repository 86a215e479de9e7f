"""Valid and invalid requests generated from the OpenAPI description get only responses that it describes."""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from rediffuse.serving.app import create_app


@pytest.fixture(scope="module")
def app(folders):
    return create_app(folders)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_response_is_described(app, mode):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 11
    calls = 0

    def call(case):
        nonlocal calls
        calls += 1
        # A schema cannot say that a run has no choice of sampling steps, or that there are as many users as histories.
        # So valid requests may be refused.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    options = {"max_examples": 25, "derandomize": True, "deadline": None, "phases": [Phase.generate, Phase.shrink]}
    for operation in operations:
        if mode == GenerationMode.NEGATIVE and not operation.body and not operation.query:
            continue  # no request could be invalid
        cases = operation.as_strategy(generation_mode=mode)
        settings(**options, suppress_health_check=list(HealthCheck))(given(cases)(call))()
    assert calls > 50


def test_the_description_has_examples_and_problem_details(app):
    description = TestClient(app).get("/openapi.json").json()
    for path, operations in description["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/"):
                assert operation["responses"]["422"]["content"].keys() == {"application/problem+json"}
    assert "HTTPValidationError" not in json.dumps(description)
    examples = description["components"]["schemas"]["RecommendRequest"]["examples"]
    with TestClient(app) as client:
        for example in examples:
            assert client.post("/v1/recommend", json=example).status_code == 200
