"""What the performers of one route's calls have at hand: its settings, secrets, connections, files, tools."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from processor.address import Allowed, parse_url
from processor.audit import AuditEntry
from processor.capability.budgets import Budgets, Tab
from processor.capability.client import Client
from processor.capability.completions import ModelServer
from processor.capability.mcp import ToolSession
from processor.capability.permit import Permit, allow_all
from processor.capability.roots import Roots
from processor.capability.secrets import Vault
from processor.capability.streams import OpenStreams, StreamEntry
from processor.capability.toolbox import RouteTools, Toolbox
from processor.policy import ALLOWED, Ask, Verdict
from processor.reach import InferenceEndpoint, Reach, ToolServer

# An endpoint, seconds, tokens in and out, and the seconds to the first piece where there were pieces.
Inferred = Callable[[str, float, int, int, float | None], None]


class Connections:
    """A client for each list of allowed hosts, made when it is first needed, and kept until `close`."""

    def __init__(
        self, reach: Reach, connect: Callable[[Allowed, str], Client], toolbox: Toolbox, route: str = ""
    ) -> None:
        self.reach = reach
        self.route = route
        self.permit: Permit = allow_all
        self.verdict: Callable[[Ask], Verdict] = lambda ask: ALLOWED
        # Notes what a capability has to say in the audit; False where nothing is noted.
        self.remark: Callable[[AuditEntry], bool] = lambda entry: False
        # Adds to the entry of the call that is made what only its performer knows.
        self.describe: Callable[[Mapping[str, Any]], None] = lambda details: None
        # Leaves the entry of the call that is made, whose answer has this status, open until its stream ends.
        self.defer: Callable[[int], StreamEntry] = StreamEntry
        # Hears of each call of a model.
        self.inferred: Inferred = lambda name, seconds, given, said, first_s: None
        self.vault = Vault(reach.secrets)
        self.files = Roots(reach.files)
        self.tools = RouteTools(reach.tools, toolbox)
        self.tab = Tab(Budgets())
        self.streams = OpenStreams()
        self._connect = connect
        self._clients: dict[str, Client] = {}
        self._sessions: dict[str, ToolSession] = {}
        self._model_servers: dict[str, ModelServer] = {}

    def under(self, permit: Permit, verdict: Callable[[Ask], Verdict]) -> Connections:
        """The same connections for calls that ask `permit`, of each redirect and each secret; `verdict` says
        what it would say.
        """
        others = copy.copy(self)
        others.permit, others.vault, others.verdict = permit, self.vault.under(permit), verdict
        return others

    def on(self, tab: Tab, streams: OpenStreams) -> Connections:
        """The same connections for the calls of runs that are charged to `tab` and pull from `streams`."""
        others = copy.copy(self)
        others.tab, others.streams = tab, streams
        return others

    def client(self, name: str, allowed: Allowed, place: str) -> Client:
        """The client of this name, made for `allowed` when it is first asked for; `place` is its key."""
        if name not in self._clients:
            self._clients[name] = self._connect(allowed, place)
        return self._clients[name]

    def session(self, server: ToolServer) -> ToolSession:
        """What is known of a server of tools, from the first call of one of them on."""
        if server.name not in self._sessions:
            allowed = Allowed.only(parse_url(server.url))
            client = self.client(f"tools.{server.name}", allowed, f"tools.{server.name}.mcp")
            max_bytes = self.reach.outbound.response_bytes
            self._sessions[server.name] = ToolSession(server, client, max_bytes)
        return self._sessions[server.name]

    def model_server(self, endpoint: InferenceEndpoint) -> ModelServer:
        """The server of an endpoint, from the first call of one of its models on."""
        name = endpoint.name
        if name not in self._model_servers:
            allowed = Allowed.only(parse_url(endpoint.base_url))
            client = self.client(f"inference.{name}", allowed, f"inference.{name}.base_url")
            self._model_servers[name] = ModelServer(endpoint, client, self.reach.outbound.response_bytes)
        return self._model_servers[name]

    async def close(self) -> None:
        """Close the connections and the roots, and end workers of tools. Idempotent; a later call makes new
        ones.
        """
        self.files.close()
        self._sessions.clear()
        self._model_servers.clear()
        await self.tools.close()
        clients = list(self._clients.values())
        self._clients.clear()  # which those under other permits share
        for client in clients:
            await client.close()
