"""Run user-written Python on NATS streams, in a jail, exactly once."""

__version__ = "0.1.0"
