"""The OpenAPI description is kept: requests made from it, good and bad, get only answers that it describes."""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance as beyond_a_schema
from starlette.testclient import TestClient

from rediffuse.serving.app import create_app

# That a run has no steps to choose, or that there are as many users as histories, no schema can say: such requests are
# refused though they keep it.


@pytest.fixture(scope="module")
def app(folders):
    return create_app(folders)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_described(app, mode):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 11
    asked = 0

    def ask(case):
        nonlocal asked
        asked += 1
        case.call_and_validate(excluded_checks=[beyond_a_schema])

    options = {"max_examples": 25, "derandomize": True, "deadline": None, "phases": [Phase.generate, Phase.shrink]}
    for operation in operations:
        if mode == GenerationMode.NEGATIVE and not operation.body and not operation.query:
            continue  # nothing to do wrong
        cases = operation.as_strategy(generation_mode=mode)
        settings(**options, suppress_health_check=list(HealthCheck))(given(cases)(ask))()
    assert asked > 50


def test_the_description_has_examples_and_our_problems(app):
    described = TestClient(app).get("/openapi.json").json()
    for path, parts in described["paths"].items():
        for operation in parts.values():
            if path.startswith("/v1/"):
                assert operation["responses"]["422"]["content"].keys() == {"application/problem+json"}
    assert "HTTPValidationError" not in json.dumps(described)
    examples = described["components"]["schemas"]["RecommendRequest"]["examples"]
    with TestClient(app) as client:
        for example in examples:
            assert client.post("/v1/recommend", json=example).status_code == 200
