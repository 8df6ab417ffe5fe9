"""The interface keeps what its OpenAPI document promises, checked by Schemathesis on the real server."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

load_all_checks()

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 12


def test_the_interface_is_as_described(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tested = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        # Operations without a body have no invalid requests.
        modes = GenerationMode if operation.body else [GenerationMode.POSITIVE]
        for mode in modes:

            @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def promises_hold(case):
                case.call_and_validate(checks=CHECKS, timeout=60)
                tested.add((case.operation.label, case.meta.generation.mode))

            promises_hold()
    assert ("POST /v1/predictions", GenerationMode.POSITIVE) in tested
    assert ("POST /v1/predictions", GenerationMode.NEGATIVE) in tested
    assert len({label for label, _ in tested}) == 6
