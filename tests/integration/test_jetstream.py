"""The broker's promises, on a real server: read in order with none missing, commit all or nothing."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import (
    EXPECTED,
    ApiError,
    Broker,
    Outgoing,
    Reader,
    Unknown,
    WrongLastSequence,
    own_headers,
    parse_ack,
)
from tests.conftest import frozen
from tests.running import connected, is_empty


async def make_stream(broker: Broker, name: str = "IN", retention: str = "limits", **more: Any) -> None:
    await broker.create_stream(
        {
            "name": name,
            "subjects": [f"{name.lower()}.>"],
            "retention": retention,
            "allow_direct": True,
            **more,
        }
    )


async def fill(broker: Broker, count: int, subject: str = "in.a", first: int = 1) -> None:
    for number in range(first, first + count):
        await broker.publish(Outgoing(subject, b"%d" % number))
    await broker.flush()


async def reader(broker: Broker, retention: str = "limits", start: int = 1, prefetch: int = 100) -> Reader:
    info = await broker.stream("IN")
    assert info is not None
    return Reader(
        broker,
        "IN",
        ["in.>"],
        created=info["created"],
        retention=retention,
        name="r",
        start_sequence=start,
        prefetch=prefetch,
    )


async def holds(broker: Broker, stream: str, last_sequence: int) -> bool:
    info = await broker.stream(stream)
    return info is not None and info["state"]["last_seq"] >= last_sequence


async def take(source: Reader, count: int) -> list[int]:
    taken: list[int] = []
    while len(taken) < count:
        taken += [int(d.payload) for d in await source.take(1000, 1 << 20)]
    return taken


async def test_a_commit_stores_all_messages_or_none(nats_server: EmbeddedServer) -> None:
    """A stale fence refuses the whole batch; the right one stores it, in order, at consecutive sequences."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker, "TX", allow_atomic=True)
        first = await broker.commit([Outgoing("tx.out", b"1"), Outgoing("tx.pos", b"a", {EXPECTED: "0"})])
        with pytest.raises(WrongLastSequence):
            await broker.commit([Outgoing("tx.out", b"2"), Outgoing("tx.pos", b"b", {EXPECTED: "0"})])
        second = await broker.commit(
            [Outgoing("tx.out", b"3"), Outgoing("tx.pos", b"c", {EXPECTED: str(first)})]
        )
        stored = [(s.sequence, s.payload) async for s in broker.history("TX", ["tx.>"])]
        assert stored == [(1, b"1"), (2, b"a"), (3, b"3"), (4, b"c")]
        assert second == 4


async def test_a_commit_of_one_message_is_fenced_too(nats_server: EmbeddedServer) -> None:
    """A single message needs no batch, and loses against a stale fence all the same."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker, "TX", allow_atomic=True)
        assert await broker.commit([Outgoing("tx.pos", b"a", {EXPECTED: "0"})]) == 1
        with pytest.raises(WrongLastSequence):
            await broker.commit([Outgoing("tx.pos", b"b", {EXPECTED: "0"})])


async def test_an_oversize_message_is_refused_here_and_the_connection_lives(
    nats_server: EmbeddedServer,
) -> None:
    """Headers and payload together above max_payload never reach the server, which would hang up."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker, "TX", allow_atomic=True)
        message = Outgoing("tx.out", b"x" * (broker.max_payload - 10), {"Header": "y" * 100})
        with pytest.raises(BrokerError, match=r"E406 a message of .* exceeds the server's max_payload"):
            await broker.commit([message, Outgoing("tx.pos", b"a")])
        assert await broker.commit([Outgoing("tx.pos", b"a")]) == 1


async def test_a_reader_gives_every_message_once_and_in_order(nats_server: EmbeddedServer) -> None:
    """More messages than fit one request arrive in stream order, with subject, headers, sequence and time."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker)
        await fill(broker, 1000)
        source = await reader(broker)
        assert await take(source, 1000) == list(range(1, 1001))
        await broker.publish(Outgoing("in.b", b"1001", {"Colour": "blue"}))
        [last] = await source.take(10, 1 << 20)
        assert (last.subject, last.headers["Colour"], last.sequence) == ("in.b", "blue", 1001)
        assert source.lag == 0
        await source.close()


async def test_a_reader_takes_no_more_than_asked(nats_server: EmbeddedServer, wait_until: Any) -> None:
    """Batches are bounded by messages and by bytes; one message may exceed the bytes."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker)
        for _ in range(10):
            await broker.publish(Outgoing("in.a", b"x" * 1000))
        source = await reader(broker)
        await source.take(1, 1 << 20)
        await wait_until(lambda: source.waiting == 9, "all of them are here")
        assert len(await source.take(3, 1 << 20)) == 3
        assert len(await source.take(100, 2500)) == 2
        assert len(await source.take(100, 10)) == 1
        await source.close()


async def test_a_reader_goes_on_where_it_was_after_its_consumer_was_deleted(
    nats_server: EmbeddedServer,
) -> None:
    """The consumer is only a means: it is made anew behind the last message that arrived."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker)
        await fill(broker, 250)
        source = await reader(broker)
        taken = await take(source, 100)
        for consumer in await broker.consumers("IN"):
            await broker.delete_consumer("IN", consumer["name"])
        await fill(broker, 50, first=251)
        taken += await take(source, 300 - len(taken))  # what came in pieces may have been more than 100
        assert taken == list(range(1, 301))
        await source.close()


async def test_a_reader_notices_a_message_that_was_delivered_but_never_arrived(
    nats_server: EmbeddedServer,
) -> None:
    """Somebody else pulls from our consumer: the gap in its sequence is seen, and nothing is lost."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker)
        source = await reader(broker, prefetch=10)
        await fill(broker, 5)
        taken = await take(source, 5)
        [consumer] = await broker.consumers("IN")
        thief = broker.client.new_inbox()
        await broker.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.IN.{consumer['name']}", b"3", reply=thief)
        await fill(broker, 20, first=6)
        taken += await take(source, 20)
        assert taken == list(range(1, 26))
        await source.close()


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
async def test_what_was_not_acknowledged_comes_again_in_order(
    nats_server: EmbeddedServer, retention: str, wait_until: Any
) -> None:
    """On a work-queue or interest stream a new reader gets what the old one had not settled, oldest first."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker, retention=retention)
        first = await reader(broker, retention)
        opening = asyncio.create_task(first.take(4, 1 << 20))
        await wait_until(lambda: broker.consumers("IN"), "the consumer exists")
        await fill(broker, 10)
        deliveries = await opening
        while len(deliveries) < 4:
            deliveries += await first.take(4 - len(deliveries), 1 << 20)
        await first.ack(deliveries[:3])
        await broker.flush()
        await first.close()
        second = await reader(broker, retention, start=4)
        deliveries = []
        while len(deliveries) < 7:
            deliveries += await second.take(7, 1 << 20)
        assert [d.sequence for d in deliveries] == [4, 5, 6, 7, 8, 9, 10]
        await second.ack(deliveries)

        async def is_alone() -> bool:
            return len(await broker.consumers("IN")) == 1

        await wait_until(is_alone, "the first reader's consumer is gone")
        await second.close()


async def test_a_work_queue_is_emptied_by_acknowledging(nats_server: EmbeddedServer, wait_until: Any) -> None:
    """A settled message that is handed out again, because its acknowledgement was lost, is acknowledged."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker, retention="workqueue")
        await fill(broker, 5)
        source = await reader(broker, "workqueue", start=3)
        deliveries = await source.take(10, 1 << 20)
        assert deliveries[0].sequence == 3
        while len(deliveries) < 3:
            deliveries += await source.take(10, 1 << 20)
        await source.ack(deliveries)
        await wait_until(partial(is_empty, broker, "IN"), "the work queue is empty")
        await source.close()


async def test_a_stream_that_was_made_anew_is_not_read_on(nats_server: EmbeddedServer) -> None:
    """Its sequences count from 1 again: reading on would skip its first messages without a word."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker)
        await fill(broker, 5)
        source = await reader(broker)
        await take(source, 5)
        await broker.api("STREAM.DELETE.IN")
        await make_stream(broker)
        await fill(broker, 10)
        with pytest.raises(BrokerError, match="E407 stream IN was deleted and recreated"):
            await take(source, 1)
        await source.close()


async def test_a_killed_server_interrupts_nothing_but_time(
    nats_server_file: EmbeddedServer, wait_until: Any
) -> None:
    """A reader waits through kill -9 and restart of the server and then goes on, none missing."""
    async with connected(nats_server_file.url) as broker:
        await make_stream(broker)
        await fill(broker, 20)
        source = await reader(broker)
        taken = await take(source, 20)
        nats_server_file.kill()
        more = asyncio.create_task(take(source, 10))
        await wait_until(lambda: not broker.is_connected, "the broker noticed")
        nats_server_file.restart()
        await broker.connected()
        await fill(broker, 10, first=21)
        taken += await more
        assert taken == list(range(1, 31))
        await source.close()


async def test_a_commit_without_an_answer_is_unknown(nats_server: EmbeddedServer, monkeypatch: Any) -> None:
    """A frozen server does not answer; whether it stored the batch is not guessed."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker, "TX", allow_atomic=True)
        monkeypatch.setattr("processor.jetstream.connection._REQUEST_TIMEOUT_S", 0.2)
        async with frozen(nats_server.pid):
            with pytest.raises(Unknown):
                await broker.commit([Outgoing("tx.a", b"1"), Outgoing("tx.b", b"2")])


async def test_last_of_reads_more_than_the_server_gives_at_once(
    nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """Above 1,024 subjects one direct get is refused; the answer is complete all the same."""
    async with connected(nats_server.url) as broker:
        await make_stream(broker, "TX", allow_atomic=True)
        for number in range(1500):
            await broker.publish(Outgoing(f"tx.k.{number}", b"old"))
            await broker.publish(Outgoing(f"tx.k.{number}", b"%d" % number))
        await wait_until(partial(holds, broker, "TX", 3000), "all messages are stored")
        stored = await broker.last_of("TX", ["tx.k.*"])
        assert sorted(int(s.payload) for s in stored) == list(range(1500))
        assert await broker.last_of("TX", ["tx.none.*"]) == []
        assert len(await broker.last_of("TX", ["tx.k.1", "tx.k.2"])) == 2


async def test_a_missing_stream_has_a_name_and_a_number(nats_server: EmbeddedServer) -> None:
    """Errors of the server's API carry its own number; a missing stream is None, not an error."""
    async with connected(nats_server.url) as broker:
        assert await broker.stream("NOPE") is None
        assert await broker.find_stream("nope.>") is None
        with pytest.raises(ApiError) as refused:
            await broker.consumers("NOPE")
        assert refused.value.err_code == 10059


async def test_no_server_is_said_with_its_address(free_port: int) -> None:
    """Where nothing listens, the error names the address and what to set."""
    with pytest.raises(BrokerError, match=rf"E404 no NATS server answers at nats://127.0.0.1:{free_port}"):
        await Broker.connect({"servers": [f"nats://127.0.0.1:{free_port}"]}, name="test", wait=False)


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.IN.c1.1.42.7.1700000000000000000.3",
        "$JS.ACK._.hash.IN.c1.1.42.7.1700000000000000000.3",
        "$JS.ACK.hub.hash.IN.c1.1.42.7.1700000000000000000.3.rand",
    ],
)
def test_delivery_metadata_is_read_from_every_form_of_reply(reply: str) -> None:
    """The 9-token form and the longer ones, with domain and account hash, say the same."""
    assert parse_ack(reply) == ("c1", 42, 7, 1_700_000_000.0, 3)


def test_headers_of_the_server_do_not_travel_on() -> None:
    """`Nats-*` headers of a message would act again where it is forwarded."""
    assert own_headers({"Nats-Msg-Id": "1", "nats-free": "x", "Colour": "blue"}) == {
        "nats-free": "x",
        "Colour": "blue",
    }


async def test_reading_over_a_closed_connection_is_no_answer(nats_server: EmbeddedServer) -> None:
    """As every other request then: who reads waits for the next connection, and reports no fault of ours."""
    async with connected(nats_server.url) as broker:
        await broker.close()
        with pytest.raises(Unknown):
            await broker.last_of("S", ["s.*"])
