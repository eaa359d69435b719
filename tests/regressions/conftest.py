"""A running processor for tests that keep a bug from coming back."""

from tests.running import processor

__all__ = ["processor"]
