"""`nats pub` and `nats request`, as pages show them, where the command line of NATS is not installed.

It takes the words that the program takes, sends what it would send, and ends with 1 where an app refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

import nats


async def _send(options: argparse.Namespace) -> int:
    client = await nats.connect(os.environ["NATS_URL"])
    headers = dict(line.split(":", 1) for line in options.header) or None
    if options.action == "pub":
        await client.publish(options.subject, options.payload.encode(), headers=headers)
        await client.close()
        return 0
    answer = await client.request(options.subject, options.payload.encode(), 10, headers=headers)
    sys.stdout.write(f"{answer.data.decode()}\n")
    await client.close()
    return int("Nats-Service-Error" in (answer.headers or {}))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["pub", "request"])
    parser.add_argument("subject")
    parser.add_argument("payload")
    parser.add_argument("-H", "--header", action="append", default=[])
    return asyncio.run(_send(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
