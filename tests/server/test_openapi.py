"""The OpenAPI document against the server: whatever it allows, and what it does not, is answered as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest

from support.server import serving

EXAMPLES = 25
"""Of each operation."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")  # of libraries that only this test needs
def test_whatever_is_asked_is_answered_as_the_document_says(tmp_path: Path) -> None:
    """No status that is not documented, none of a failure of the server, no worker that dies; streams end, too."""
    schemathesis = pytest.importorskip("schemathesis")
    known = schemathesis.checks
    checks = [known.status_code_conformance, known.content_type_conformance, known.response_schema_conformance]
    asked = 0
    with serving(tmp_path / "store", "--max-pixels", "0.02", "--job-seconds", "5") as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/api/openapi.json")
        before = server.worker_pids()
        for result in schema.get_all_operations():
            operation = result.ok()

            @hypothesis.settings(
                max_examples=EXAMPLES,
                database=None,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy())
            def answered(case: Any) -> None:
                nonlocal asked
                asked += 1
                if case.path.endswith("/events"):
                    case.query = {**(case.query or {}), "seconds": "0.1"}
                if "wait" in (case.query or {}):
                    case.query["wait"] = "0"
                answer = case.call_and_validate(checks=checks, timeout=30)
                assert answer.status_code < 500 or answer.status_code in (503, 504, 507), answer.text

            answered()
        assert server.worker_pids() == before
    assert asked > 500
