"""Real processes need the environment that those of the end-to-end tests have."""

from tests.end_to_end.conftest import environment

__all__ = ["environment"]
