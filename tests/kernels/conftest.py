"""What computes is tested with the threads that users have."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def threads(all_cores: None) -> None:
    """As many as there are cores."""
