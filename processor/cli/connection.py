"""The way to a NATS server for a verb: the configured one, one from the environment, or an embedded one.

An embedded server takes a free port; while one runs, the file `address` in its store directory says where,
so that a second command finds it. A command that needs an embedded server that does not run starts it for
itself, on the same data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from processor.config import Config, Nats
from processor.context.subjects import app_stream
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Unknown, connect_options

_ADDRESS = "address"


@contextlib.contextmanager
def embedded_server(nats: Nats) -> Iterator[EmbeddedServer | None]:
    """The embedded server, if `nats` asks for one, for as long as the block runs. Raises BrokerError E411."""
    if not nats.embedded:
        yield None
        return
    with EmbeddedServer.start(Path(nats.store_dir)) as server:
        tell_address(server)
        try:
            yield server
        finally:
            (server.store_dir / _ADDRESS).unlink(missing_ok=True)


def tell_address(server: EmbeddedServer) -> None:
    """Let other commands find the server; to be repeated after a restart."""
    (server.store_dir / _ADDRESS).write_text(json.dumps({"pid": server.pid, "url": server.url}))


def at(nats: Nats, url: str) -> Nats:
    """`nats` with the address of the embedded server in place of the word."""
    return nats.model_copy(update={"url": (url,)}) if nats.embedded else nats


@contextlib.contextmanager
def server_for(nats: Nats) -> Iterator[tuple[Nats, bool]]:
    """The server with its address, for one command, and whether it runs for this command alone."""
    # Without an address `dev` has a server of its own, which is the one that is meant while it runs.
    is_open = nats.embedded or "url" not in nats.model_fields_set
    running = _running_url(nats) if is_open else ""
    if running:
        nats = nats.model_copy(update={"url": ("embedded",)})
    with embedded_server(nats) if not running else contextlib.nullcontext() as server:
        yield at(nats, server.url if server else running), server is not None


@contextlib.asynccontextmanager
async def connected(nats: Nats, name: str, *, needs_jetstream: bool = True) -> AsyncIterator[Broker]:
    """A connection for one command; what goes wrong on it is raised as BrokerError."""
    with server_for(nats) as (server, _):
        options = connect_options(server)
        broker = await Broker.connect(options, name=name, wait=False, needs_jetstream=needs_jetstream)
        try:
            yield broker
        except (Unknown, Again, ApiError) as err:
            raise unanswered(broker, err) from err
        finally:
            await broker.close()


@contextlib.asynccontextmanager
async def connected_to_app(config: Config, verb: str) -> AsyncIterator[Broker]:
    """As `connected`, for a verb that needs what the app stored. Raises BrokerError E401 if it never ran."""
    async with connected(config.nats, f"processor {verb} {config.app}") as broker:
        stream = app_stream(config.app)
        if await broker.stream(stream) is None:
            raise BrokerError(
                "E401",
                f"there is no stream {stream} at {broker.address}",
                remedy=f"The app {config.app} has not run there yet.",
            )
        yield broker


def unanswered(broker: Broker, err: Unknown | Again | ApiError) -> BrokerError:
    """What a request without a good answer means to a person."""
    if isinstance(err, ApiError):
        return BrokerError("E406", f"the NATS server refused: {err}")
    if broker.last_denial:
        return BrokerError(
            "E403",
            f"the NATS server does not let this user {broker.last_denial}",
            remedy="Give the user that permission.",
        )
    return BrokerError("E404", f"the NATS server at {broker.address} did not answer: {err}")


def _running_url(nats: Nats) -> str:
    """The address of an embedded server that runs on this store now, if there is one."""
    try:
        address = json.loads((Path(nats.store_dir) / _ADDRESS).read_bytes())
        name = Path(f"/proc/{int(address['pid'])}/comm").read_text().strip()
        return str(address["url"]) if name == "nats-server" else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
