"""Chapter 12: four apps of a first day, as they are shipped in configs/examples."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.embedded import EmbeddedServer
from tests.running import Running, started
from tests.web import Asked, answer, serving

EXAMPLES = Path(__file__).parents[2] / "configs" / "examples"
Copy = Callable[..., Path]


@pytest.fixture
def example(tmp_path: Path) -> Copy:
    """`example(name, {old: new})` copies an example with its texts changed; the path of its configuration."""

    def copy(name: str, changes: dict[str, str] | None = None) -> Path:
        folder = shutil.copytree(
            EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns(".processor")
        )
        for old, new in (changes or {}).items():
            holders = [path for path in folder.iterdir() if old in path.read_text()]
            assert holders, f"{name} has no {old}"
            for path in holders:
                path.write_text(path.read_text().replace(old, new))
        return folder / f"{name}.yaml"

    return copy


def sample(path: Path) -> list[Any]:
    return [orjson.loads(line) for line in (path.parent / "sample.jsonl").read_text().splitlines()]


async def letter(running: Running, route: str) -> tuple[str, str]:
    """Code and reason of the one dead letter of a route."""
    [stored] = await running.dead_letters(route)
    return stored.headers["x-error-code"], stored.headers["x-dead-letter-reason"]


async def test_orders_are_cleaned_and_know_their_customers(
    example: Copy, nats_server: EmbeddedServer
) -> None:
    """Whatever way a shop writes amounts, they come out alike; what cannot be read is a dead letter."""
    path = example("orders")
    async with started(path, nats_server.url) as running:
        for document in sample(path):
            await running.publish(f"shop.{document['kind']}", document)
        orders = {order["order"]: order for order in await running.documents("clean.orders", 4)}
        assert orders["1001"] == {
            "order": "1001",
            "customer": 7,
            "amount": "12.50",
            "currency": "EUR",
            "at": "2026-03-02T09:14:00+01:00",
            "name": None,
            "tier": "unknown",
        }
        assert {o["order"]: (o["amount"], o["currency"], o["name"], o["tier"]) for o in orders.values()} == {
            "1001": ("12.50", "EUR", None, "unknown"),
            "1002": ("99.90", "EUR", "Ada Example", "gold"),
            "1003": ("1250.00", "USD", "Ben Example", "basic"),
            "1005": ("5.00", "EUR", "Ada Example", "gold"),
        }
        assert await letter(running, "orders") == ("E305", "amount 'a lot' is not a number")


async def test_clicks_become_sessions(example: Copy, nats_server: EmbeddedServer) -> None:
    """A session ends by itself when nothing comes any more; the next click begins another."""
    path = example("sessions", {"GAP_S = 1800": "GAP_S = 1"})
    async with started(path, nats_server.url) as running:
        for click in sample(path):
            await running.publish("clicks.page", click)
        first = {s["visitor"]: s["pages"] for s in await running.documents("sessions.*", 2)}
        assert first == {"v1": ["/", "/docs", "/docs/start"], "v2": ["/pricing"]}
        await running.publish("clicks.page", {"visitor": "v1", "page": "/again"})
        sessions = await running.documents("sessions.v1", 2)
        assert sessions[1]["pages"] == ["/again"]
        contexts = await running.contexts("sessions")
        assert [contexts[visitor]["open"] for visitor in ("v1", "v2")] == [None, None]


async def test_tickets_are_classified_and_a_busy_model_is_asked_again(
    example: Copy, nats_server: EmbeddedServer
) -> None:
    """429 and 500 are tried again after what the model asks for; a refusal is a dead letter at once."""
    refused: dict[str, int] = {}

    def say(asked: Asked) -> bytes:
        text = orjson.loads(asked.body)["messages"][1]["content"]
        if "rename" in text:
            return answer(b"{}", status=400)
        refused[text] = refused.get(text, 0) + 1
        if refused[text] == 1:
            return answer(b"busy", status=429 if "charged" in text else 500, retry_after="0.1")
        kind = "billing" if "charged" in text else "fault"
        content = orjson.dumps({"kind": kind, "urgent": "blocked" in text}).decode()
        return answer(orjson.dumps({"choices": [{"message": {"content": content}}]}))

    async with serving(say) as web:
        hosts = {"https://llm.example.com": web.url, "llm.example.com": web.host}
        path = example("tickets", hosts)
        async with started(path, nats_server.url, LLM_API_KEY="canary-of-the-key") as running:
            await running.publish("tickets.new", *sample(path))
            verdicts = await running.documents("tickets.classified", 2)
            assert sorted(verdicts, key=lambda verdict: str(verdict["id"])) == [
                {"id": "T-1", "kind": "billing", "urgent": False},
                {"id": "T-2", "kind": "fault", "urgent": True},
            ]
            assert await letter(running, "classify") == ("E305", "the model refused the ticket with 400")
            assert {asked.headers["authorization"] for asked in web.asked} == {"Bearer canary-of-the-key"}
            assert len(web.asked) == 5


async def test_readings_go_through_two_routes(example: Copy, nats_server: EmbeddedServer) -> None:
    """What the first route writes is what the second reads; a refused message leaves nothing of it."""
    path = example("readings")
    async with started(path, nats_server.url) as running:
        for document in sample(path):
            await running.publish(f"lines.{document['gateway']}", document)
        [alert] = await running.documents("alerts.*", 1)
        assert alert == {"sensor": "t-1", "celsius": 29.0, "usual": 21.53}
        parsed = await running.documents("parsed.t-1", 6)
        assert [reading["celsius"] for reading in parsed] == [21.5, 21.6, 21.4, 21.7, 21.5, 29.0]
        assert await letter(running, "parse") == ("E305", "not a reading: 'broken'")
