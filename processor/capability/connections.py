"""What the performers of one route's calls have at hand: its settings, its secrets, and its connections."""

from __future__ import annotations

from collections.abc import Callable

from processor.address import Allowed
from processor.capability.client import Client
from processor.capability.monitor import Permit
from processor.capability.secrets import Vault
from processor.reach import Reach


class Connections:
    """A client for each list of allowed hosts, made when it is first needed, and kept until `close`."""

    def __init__(self, reach: Reach, connect: Callable[[Allowed, str], Client], permit: Permit) -> None:
        self.reach = reach
        self.permit = permit
        self.vault = Vault(reach.secrets, permit)
        self._connect = connect
        self._clients: dict[str, Client] = {}

    def client(self, name: str, allowed: Allowed, place: str) -> Client:
        """The client of this name, made for `allowed` when it is first asked for; `place` is its key."""
        if name not in self._clients:
            self._clients[name] = self._connect(allowed, place)
        return self._clients[name]

    async def close(self) -> None:
        """Close the connections. Idempotent; a later call makes new ones."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()
