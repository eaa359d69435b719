"""nats-py without the HTTP client that it imports where that is installed: a sixth of the start of a command.

It takes aiohttp for servers that are reached by WebSocket, which none of ours is. Whoever uses nats-py in the
same process for such a server has it still, from the first use on.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """aiohttp, imported when something of it is needed."""

    def __getattr__(self, name: str) -> Any:
        import aiohttp

        return getattr(aiohttp, name)


def import_client() -> None:
    """Import what there is of nats-py, unless aiohttp is there already and costs nothing more."""
    if "aiohttp" in sys.modules:
        return
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # an import of it fails, which nats-py expects
    try:
        import nats.aio.transport
    finally:
        del sys.modules["aiohttp"]
    vars(nats.aio.transport)["aiohttp"] = _Later("aiohttp")


import_client()
