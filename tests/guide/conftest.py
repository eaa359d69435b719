"""A running processor for every chapter of the guide."""

from tests.running import processor

__all__ = ["processor"]
