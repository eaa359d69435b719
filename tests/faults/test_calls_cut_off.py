"""kill -9 around the calls of a route: what a server was asked is in the audit, and no chain is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.embedded import EmbeddedServer
from tests.faults import calls, ledger
from tests.faults.host import CALL, start
from tests.running import connected
from tests.web import serving

HALF = "inside step 2, half of the batch sent"


@pytest.mark.parametrize("point", [*CALL, HALF])
async def test_every_request_has_an_entry_whenever_its_host_is_killed(
    point: str, nats_server_file: EmbeddedServer, tmp_path: Path
) -> None:
    """A call that was cut off from its commit is `unresolved`; entries and outputs are there together."""
    async with (
        serving(lambda asked: b"HTTP/1.1 204 No\r\n\r\n") as web,
        connected(nats_server_file.url) as broker,
    ):
        config = calls.write_config(tmp_path, web.host, "all")
        await calls.make_input(broker)
        await calls.feed(broker, web.url, range(40))
        assert await calls.died(start(config, nats_server_file.url, point, 2), 60), "it came to its point"
        before = len(web.asked)
        has_outputs = await ledger.count(broker, "p.app.out.out.r") > 0
        has_entries = await ledger.count(broker, "p.app.audit.r.*") > 0
        assert has_outputs == has_entries
        await calls.finish(broker, config, nats_server_file.url, 40)
        found = await calls.examine(broker, web.asked, web.url, 40, "all")
    assert not found, found
    entries = {name: count for name, count in found.counts.items() if name != "requests"}
    assert entries["http committed"] == 40
    if point == "between a call and its commit":
        assert before > 0
        assert entries["unresolved unknown"] >= 1
