"""The same work without Processor, each as a process: `python -m processor.bench.baselines NAME ...`.

They do nothing but read, count, publish and acknowledge, at least once: no jail, no kept context, no
dead letters. Each prints one JSON object.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import nats
import orjson

from processor.bench.processes import rss_mb
from processor.jetstream import Broker, Outgoing, Reader, encode
from processor.model import Delivery

_FETCH = 100
_WINDOW = 500


async def _loop(url: str, stream: str, count: int, *, is_pipelined: bool) -> float:
    """As one would write it: fetch 100, publish each result, acknowledge; the seconds it took."""
    client = await nats.connect(url.split(","))
    js = client.jetstream()
    await js.add_stream(name=f"{stream}-out", subjects=[f"{stream}-out.>"])
    subscription = await js.pull_subscribe(f"{stream}.>", durable="loop", stream=stream)
    done = 0
    began_s = time.perf_counter()
    while done < count:
        messages = await subscription.fetch(_FETCH, timeout=5)
        stored = []
        for message in messages:
            done += 1
            payload = orjson.dumps({"index": done, **orjson.loads(message.data)})
            if is_pipelined:
                stored.append(await js.publish_async(f"{stream}-out.x", payload))
            else:
                await js.publish(f"{stream}-out.x", payload)
                await message.ack()
        if is_pipelined:
            await asyncio.gather(*stored)
            for message in messages:
                await message.ack()
    await client.flush()
    took_s = time.perf_counter() - began_s
    await client.close()
    return took_s


async def sequential(url: str, stream: str, count: int) -> float:
    return await _loop(url, stream, count, is_pipelined=False)


async def pipelined(url: str, stream: str, count: int) -> float:
    return await _loop(url, stream, count, is_pipelined=True)


async def faststream(url: str, stream: str, count: int) -> float:
    """A pull subscriber and a publisher as decorators, as that project's documentation has them."""
    library: Any = importlib.import_module("faststream.nats")  # of the extra `bench`
    client = await nats.connect(url.split(","))
    await client.jetstream().add_stream(name=f"{stream}-out", subjects=[f"{stream}-out.>"])
    await client.close()
    broker = library.NatsBroker(url.split(","), logger=None)
    done = 0
    finished = asyncio.Event()

    async def handle(document: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == count:
            finished.set()
        return {"index": done, **document}

    publishing = broker.publisher(f"{stream}-out.x", stream=f"{stream}-out")
    subscribing = broker.subscriber(
        f"{stream}.>",
        stream=library.JStream(stream, declare=False),
        durable="loop",
        pull_sub=library.PullSub(batch_size=_FETCH),
    )
    subscribing(publishing(handle))
    began_s = time.perf_counter()
    await broker.start()
    await finished.wait()
    took_s = time.perf_counter() - began_s
    await broker.stop()
    return took_s


async def natsio(url: str, stream: str, count: int) -> float:
    """What (b) does with a client that has no JetStream: its requests and acks are written by hand."""
    library: Any = importlib.import_module("natsio.client")  # of the extra `bench`
    setup = await nats.connect(url.split(","))
    await setup.jetstream().add_stream(name=f"{stream}-out", subjects=[f"{stream}-out.>"])
    await setup.jetstream().pull_subscribe(f"{stream}.>", durable="loop", stream=stream)
    await setup.close()
    async with library.NATSCore(library.ClientConfig(servers=url.split(","))) as client:
        fetched = await client.subscribe("loop.fetched")
        stored = await client.subscribe("loop.stored")
        done = 0
        began_s = time.perf_counter()
        while done < count:
            wanted = orjson.dumps({"batch": min(_FETCH, count - done)})
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.loop", wanted, reply_to="loop.fetched")
            messages = [await fetched.next_msg(5) for _ in range(min(_FETCH, count - done))]
            for message in messages:
                done += 1
                payload = orjson.dumps({"index": done, **orjson.loads(message.payload)})
                await client.publish(f"{stream}-out.x", payload, reply_to="loop.stored")
            for _ in messages:
                answer = orjson.loads((await stored.next_msg(5)).payload)
                if "error" in answer:
                    raise RuntimeError(answer["error"]["description"])
            for message in messages:
                await message.reply(b"+ACK")
        await client.flush()
        return time.perf_counter() - began_s


async def ceiling(url: str, stream: str, count: int) -> float:
    """Our own way of reading and publishing, with nothing in between: what transport alone can do."""
    broker = await Broker.connect({"servers": url.split(",")}, name="ceiling", wait=False)
    await broker.create_stream({"name": f"{stream}-out", "subjects": [f"{stream}-out.>"]})
    info = await broker.stream(stream)
    assert info is not None
    reader = Reader(
        broker,
        stream,
        [f"{stream}.>"],
        created=info["created"],
        retention="limits",
        name="ceiling",
        start_sequence=1,
        prefetch=2 * _WINDOW,
    )
    inbox = broker.client.new_inbox()
    stored = 0
    arrived = asyncio.Event()

    async def count_one(_: Delivery) -> None:
        nonlocal stored
        stored += 1
        arrived.set()

    await broker.listen(inbox, count_one)
    began_s = time.perf_counter()
    await reader.open()
    done = 0
    while stored < count:
        if done < count and done - stored <= _WINDOW:
            deliveries = await reader.take(_WINDOW, 4 << 20)
            done += len(deliveries)
            await broker.send([encode(Outgoing(f"{stream}-out.x", d.payload), inbox) for d in deliveries])
            continue
        arrived.clear()
        await arrived.wait()
    took_s = time.perf_counter() - began_s
    await reader.close()
    await broker.close()
    return took_s


async def plain(url: str, stream: str, count: int) -> float:
    """What the counter does with each message, where messages cost nothing."""
    payload = orjson.dumps({"i": 1, "sent": time.time(), "pad": "n" * 130})
    context = {"counter": 0}
    began_s = time.perf_counter()
    for _ in range(count):
        document = orjson.loads(payload)
        context["counter"] += 1
        orjson.dumps({"index": context["counter"], **document})
    return time.perf_counter() - began_s


BASELINES: dict[str, Callable[[str, str, int], Coroutine[None, None, float]]] = {
    "sequential": sequential,
    "pipelined": pipelined,
    "faststream": faststream,
    "natsio": natsio,
    "ceiling": ceiling,
    "plain": plain,
}


def main() -> None:
    name, url, stream, count = sys.argv[1:]
    before_s = time.process_time()  # imports are not part of it
    took_s = asyncio.run(BASELINES[name](url, stream, int(count)))
    used = {"cpu_s": time.process_time() - before_s, "rss_mb": rss_mb(os.getpid())}
    sys.stdout.write(json.dumps({"seconds": took_s, **used}) + "\n")


if __name__ == "__main__":
    main()
