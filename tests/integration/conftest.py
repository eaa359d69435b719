"""A running processor, and servers with a configuration of their own, for every test here."""

from tests.running import processor, serve

__all__ = ["processor", "serve"]
