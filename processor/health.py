"""The HTTP server of a process: /metrics, /livez and /readyz, and whatever else is mounted beside them.

It runs in the event loop that does the work, so that /livez stays silent when the loop hangs: this is what a
liveness probe is for. What comes in is hostile: nothing of it is logged, none of it is kept, and a client has
so many seconds for all of a request and its answer, whatever it does in them.

The routes of others (`routes`) are served in the same place; how long their answers take is theirs to bound.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import Iterable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

from processor import __version__
from processor.errors import ProcessorError
from processor.telemetry import PAGE_TYPE, Telemetry

REQUEST_DEADLINE_S = 5.0
_HEADERS = {"Cache-Control": "no-store", "Server": "processor"}


class Health:
    """A server of metrics and health. Port 0 takes a free port; `url` has the real one after `start`."""

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        routes: Iterable[web.AbstractRouteDef] = (),
    ) -> None:
        self._telemetry = telemetry
        self._host = host
        self._port = port
        app = web.Application(middlewares=[self._bounded])
        own = (("/metrics", self._metrics), ("/livez", self._livez), ("/readyz", self._readyz))
        self._own = frozenset(path for path, _ in own)
        app.add_routes([*(web.get(path, answer) for path, answer in own), *routes])
        self._runner = web.AppRunner(
            app, handle_signals=False, access_log=None, logger=_log, shutdown_timeout=0.0
        )
        self._server: asyncio.Server | None = None
        self._deadlines: dict[RequestHandler, asyncio.TimerHandle] = {}

    async def start(self) -> None:
        """Listen. Raises ProcessorError E109 when the address is taken or not ours."""
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._accept, self._host, self._port
            )
        except (OSError, UnicodeError) as error:  # a host that is no name at all is the second kind
            await self._runner.cleanup()
            number = getattr(error, "errno", None) or 0
            why = os.strerror(number) if number > 0 else str(error)
            remedy = "Choose another http.host or http.port (PROCESSOR_HTTP_HOST, PROCESSOR_HTTP_PORT)."
            if number == errno.EADDRINUSE:
                remedy = (
                    "Another program listens there, perhaps another processor. Take another port: PROCESSOR_"
                    f"HTTP_PORT={self._port + 1} (0 for any that is free), or http.port in the file."
                )
            raise ProcessorError(
                "E109", f"health cannot listen on {self._host}:{self._port}: {why}", remedy=remedy
            ) from error
        self._port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def stop(self) -> None:
        """Listen no more, and end what is connected. Idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for deadline in self._deadlines.values():
            deadline.cancel()
        self._deadlines.clear()
        await self._runner.cleanup()
        await server.wait_closed()

    # How long a client may take.

    def _accept(self) -> RequestHandler:
        assert self._runner.server is not None  # from `start` on
        connection = self._runner.server()
        loop = asyncio.get_running_loop()
        self._deadlines[connection] = loop.call_later(REQUEST_DEADLINE_S, self._abort, connection)
        return connection

    def _abort(self, connection: RequestHandler) -> None:
        del self._deadlines[connection]
        if connection.transport is not None:
            connection.transport.abort()

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers within the deadline, one for each connection, but for what others have mounted."""
        try:
            if request.match_info.http_exception is None and request.path not in self._own:
                if (deadline := self._deadlines.pop(request.protocol, None)) is not None:
                    deadline.cancel()
                return await handler(request)
            answer = await handler(request)
        except web.HTTPMethodNotAllowed as refused:
            answer = _text("only GET and HEAD are served here\n", refused.status)
            answer.headers["Allow"] = refused.headers["Allow"]
        except web.HTTPNotFound as refused:
            answer = _text("try /metrics, /livez or /readyz\n", refused.status)
        answer.force_close()
        return answer

    # What there is.

    async def _metrics(self, _: web.Request) -> web.Response:
        # In a thread: a thousand busy routes take a moment to write out, and the loop has work.
        page = await asyncio.to_thread(self._telemetry.page)
        return web.Response(body=page, headers={**_HEADERS, "Content-Type": PAGE_TYPE})

    async def _livez(self, _: web.Request) -> web.Response:
        return _text("alive\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        blocks = self._telemetry.readiness.blocks
        report = {
            "ready": not blocks,
            "reasons": blocks,
            "jail": {"level": self._telemetry.jail_level, "layers": self._telemetry.jail_layers},
            "version": __version__,
        }
        text = json.dumps(report, indent=1) + "\n"
        return _text(text, 503 if blocks else 200, "application/json")


def _text(text: str, status: int = 200, content_type: str = "text/plain") -> web.Response:
    return web.Response(text=text, status=status, content_type=content_type, headers=_HEADERS)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a line is about an error of ours, and not about what a client sent that is not HTTP."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_log = logging.getLogger("processor.health")
_log.addFilter(_is_ours)
