"""Budgets while a route runs: what is denied, waited for and warned of, and what the app keeps of it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.context.ledger import accounts
from processor.context.subjects import policy_record
from processor.jetstream import KEPT, Outgoing
from processor.policy import load
from tests.running import Running, Start
from tests.web import serving

ASK = """
class Runnable:
    def process(self, queries):
        for query in queries:
            made = []
            for number in range(query.get("calls", 1)):
                try:
                    made.append(self.requests.get(query["url"]).status_code)
                except BudgetExceededError as err:
                    if query.get("raise"):
                        raise
                    made.append([err.code, str(err), err.rule])
            yield {"i": query.get("i"), "made": made}
"""
ROUTE = """
r:
  input: {{subject: "in.*", create: true}}
  runnable: ask.py
  output: out
  batch: {{max_messages: 1}}
  retry: {{attempts: 1}}
  outbound: {{allowed_domains: ["{host}"]}}
"""


def budget(kind: str, limit: int, window: str, more: str = "", name: str = "b") -> str:
    return f'[[budget]]\nname = "{name}"\nkind = "{kind}"\nlimit = {limit}\nwindow = "{window}"\n{more}\n'


def top(tmp_path: Path, policy: str, host: str) -> str:
    (tmp_path / "policy.toml").write_text(f'[net]\nallow = ["{host}"]\n{policy}')
    return "policy: policy.toml"


async def ask(running: Running, *queries: dict[str, object]) -> list[Any]:
    """What became of the calls of each of these queries."""
    before = len(await running.stored("out"))
    await running.publish("in.a", *queries)
    found = await running.documents("out", before + len(queries))
    return [document["made"] for document in found[before:]]


async def test_calls_beyond_a_budget_are_denied(processor: Start, tmp_path: Path) -> None:
    """E332 with how much is used, where it is written and when it is free again; nothing more is sent."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        settings = top(tmp_path, budget("requests", 3, "life"), web.host)
        async with processor(routes, settings, ask=ASK) as running:
            [made] = await ask(running, {"url": web.url, "calls": 4})
            assert made == [
                200, 200, 200,
                ["E332", "E332 budget b: 3 of 3 requests used in all, and this call needs 1. "
                 "Its limit is in policy.toml:3.", "policy.toml:3"],
            ]  # fmt: skip
            assert running.metric("processor_budget_denials_total", budget="b") == 1
            assert running.metric("processor_budget_used_ratio", budget="b") == 1
        assert len(web.asked) == 3


async def test_a_budget_of_a_run_is_each_run_anew(processor: Start, tmp_path: Path) -> None:
    """It is counted in the run alone, and needs no ledger."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        settings = top(tmp_path, "[budgets]\nrequests = 2\nbytes = 1_000_000\n", web.host)
        async with processor(routes, settings, ask=ASK) as running:
            first, second = await ask(running, {"url": web.url, "calls": 3}, {"url": web.url, "calls": 2})
            assert first[:2] == second == [200, 200]
            assert first[2][1].startswith("E332 budget requests: 2 of 2 requests used in this run, and this")
            assert await accounts(running.broker, "app") == {}


async def test_bytes_are_counted_with_the_answers(processor: Start, tmp_path: Path) -> None:
    """What a request says is reserved before it, and what its answer brings is charged with it."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        settings = top(tmp_path, budget("bytes", len(web.url) + 1, "run"), web.host)
        async with processor(routes, settings, ask=ASK) as running:
            [made] = await ask(running, {"url": web.url, "calls": 2})
        assert made[0] == 200
        assert made[1][0] == "E332"
        assert len(web.asked) == 1


async def test_an_uncaught_denial_is_tried_again_when_the_budget_is_free(
    processor: Start, tmp_path: Path, wait_until: Any
) -> None:
    """The message waits for the end of the window, and not for the pause of its tries."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host).replace("attempts: 1", "attempts: 2, base_ms: 1, max_ms: 1")
        settings = top(tmp_path, budget("requests", 1, "month"), web.host)
        async with processor(routes, settings, ask=ASK) as running:
            await running.publish("in.a", {"url": web.url, "calls": 2, "raise": True})
            kept = partial(running.stored, "p.app.later.r.>")
            [later] = await wait_until(kept, "the message is kept for later")
            assert later.headers  # until when the server sends it on
            assert running.metric("processor_retries_total", route="r") == 1
        assert len(web.asked) == 1


async def test_a_route_waits_for_a_budget_and_goes_on(
    processor: Start, tmp_path: Path, wait_until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With `then = "wait"` nothing is taken, tried or lost meanwhile; `/readyz` and the log say why."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        settings = top(tmp_path, budget("requests", 2, "life", 'then = "wait"'), web.host)
        async with processor(routes, settings, ask=ASK) as running:
            for number in range(4):
                await running.publish("in.a", {"url": web.url, "raise": True, "i": number})
            await wait_until(lambda: "budget r" in running.telemetry.readiness.blocks, "the route waits")
            blocks = running.telemetry.readiness.blocks
            assert blocks["budget r"] == (
                'E332 budget b: 2 of 2 requests used in all; route r takes nothing (then = "wait"). '
                "Its limit is in policy.toml:3."
            )
            assert len(await running.documents("out", 2)) == 2
            (tmp_path / "policy.toml").write_text(
                (tmp_path / "policy.toml").read_text().replace("limit = 2", "limit = 9")
            )
            assert await running.reload() == ["r"]
            assert [each["i"] for each in await running.documents("out", 4)] == [0, 1, 2, 3]
            assert "budget r" not in running.telemetry.readiness.blocks
            assert not await running.stored("p.app.dlq.>")
    assert 'route r takes nothing (then = "wait")' in caplog.text


async def test_what_runs_use_is_waited_for(processor: Start, tmp_path: Path, wait_until: Any) -> None:
    """Outputs, bytes of them, CPU and time are charged after a run; the next begins when some are left."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        lines = budget("outputs", 2, "life") + "".join(
            budget(kind, 10**12, "day", name=kind) for kind in ("output_bytes", "compute", "wall_time")
        )
        async with processor(routes, top(tmp_path, lines, web.host), ask=ASK) as running:
            for number in range(5):
                await running.publish("in.a", {"url": web.url, "i": number})
            await wait_until(lambda: "budget r" in running.telemetry.readiness.blocks, "the route waits")
        async with processor(routes, top(tmp_path, lines, web.host), ask=ASK) as running:
            made = len(await running.stored("out"))
            assert 2 <= made < 5
            await wait_until(lambda: "budget r" in running.telemetry.readiness.blocks, "it waits again")
            assert len(await running.stored("out")) == made
            kept = await accounts(running.broker, "app")
            sizes = sum(len(each.payload) for each in await running.stored("out"))
            assert kept["b"].used == made
            assert kept["output_bytes"].used == sizes
            assert kept["compute"].used > 1000
            assert kept["wall_time"].used > 0


async def test_most_of_a_budget_is_told_once(
    processor: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At 90 %: a line of the log, and an event for those who listen; one that only warns denies nothing."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host) + "  events: {subject: events, level: failures}\n"
        settings = top(tmp_path, budget("requests", 10, "life", 'then = "warn"'), web.host)
        async with processor(routes, settings, ask=ASK) as running:
            [made] = await ask(running, {"url": web.url, "calls": 12})
            assert made == [200] * 12
            [event] = await running.documents("events", 1)
        assert event["event"] == "budget_warning"
        assert (event["budget"], event["text"]) == ("b", "budget b: 9 of 10 requests used in all")
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert told.count("most of a budget is used: budget b: 9 of 10 requests used in all") == 1
        assert told.count("E332 budget b: 11 of 10 requests used in all; it only warns") == 1


async def test_a_budget_is_shared_by_its_routes_or_each_of_them_has_it(
    processor: Start, tmp_path: Path
) -> None:
    """Of the app together, or with `scope = "route"` one account for each."""
    async with serving() as web:
        one = ROUTE.format(host=web.host)
        routes = one + one.replace("r:", "s:", 1).replace("in.*", "more.*").replace(
            "output: out", "output: other"
        )
        settings = top(
            tmp_path,
            budget("requests", 4, "life") + budget("requests", 2, "life", 'scope = "route"', "each"),
            web.host,
        )
        async with processor(routes, settings, ask=ASK) as running:
            await running.publish("in.a", {"url": web.url, "calls": 3})
            [first] = await running.documents("out", 1)
            await running.publish("more.a", {"url": web.url, "calls": 3})
            [second] = await running.documents("other", 1)
        assert [each if each == 200 else each[1].partition(":")[0] for each in first["made"]] == [
            200, 200, "E332 budget each",
        ]  # fmt: skip
        assert [each if each == 200 else each[1].partition(":")[0] for each in second["made"]] == [
            200, "E332 budget b", "E332 budget b",
        ]  # fmt: skip


async def test_a_lease_is_given_back_at_the_stop(processor: Start, tmp_path: Path) -> None:
    """What a route held and did not use is free for others at once; what it used stays used."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        settings = top(tmp_path, budget("requests", 1000, "day"), web.host)
        async with processor(routes, settings, ask=ASK) as running:
            await ask(running, {"url": web.url, "calls": 3})
            assert (await accounts(running.broker, "app"))["b"].taken == 50
            await running.service.stop()
            kept = (await accounts(running.broker, "app"))["b"]
        assert (kept.used, kept.held) == (3, {})


LOOK = """
class Runnable:
    def process(self, queries):
        for query in queries:
            said = [self.budget("requests")]
            if "lower" in query:
                try:
                    self.set_budget("requests", query["lower"])
                    said.append(self.budget("requests"))
                except InvalidArgumentError as err:
                    said.append(str(err))
            try:
                for _ in range(query.get("calls", 0)):
                    self.requests.get(query["url"])
            except BudgetExceededError as err:
                said.append(str(err))
            yield {"made": [*said, self.budget("requests")["left"]]}
"""


async def test_a_runnable_sees_its_budget_and_lowers_it_for_its_run(processor: Start, tmp_path: Path) -> None:
    """The budget that has least left; what is lowered is so until the run ends, and never raised."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        settings = top(tmp_path, budget("requests", 10, "day") + "[budgets]\nrequests = 5\n", web.host)
        async with processor(routes, settings, ask=LOOK) as running:
            first, second, third = await ask(
                running,
                {"url": web.url, "lower": 2, "calls": 3},
                {"url": web.url, "lower": 6},
                {"url": web.url, "calls": 5},
            )
        whole = {"used": 0, "limit": 5, "left": 5, "window": "run", "until": None}
        assert first == [
            whole,
            whole | {"limit": 2, "left": 2},
            "E332 budget requests: 2 of 2 requests used in this run, and this call needs 1. "
            "Its limit is in set_budget.",
            0,
        ]
        assert second[:1] == [whole]
        assert "E337 the run may use 5 requests, and not 6. A budget can only be lowered." in second[1]
        assert third == [whole, 0]  # of the day 3 are left, but the run has none


async def test_the_budget_of_a_window_says_when_it_ends(processor: Start, tmp_path: Path) -> None:
    """Before anything is used the ledger is asked; `until` is the end of the window."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        async with processor(routes, top(tmp_path, "", web.host), ask=LOOK) as running:
            [bare] = await ask(running, {"url": web.url, "calls": 2})
            assert bare[0] == {"used": 0, "limit": None, "left": None, "window": "run", "until": None}
        settings = top(tmp_path, budget("requests", 10, "month"), web.host)
        async with processor(routes, settings, ask=LOOK) as running:
            [made] = await ask(running, {"url": web.url, "calls": 4})
            [again] = await ask(running, {"url": web.url})
        assert (made[0]["used"], made[0]["left"], made[1]) == (0, 10, 6)
        assert (again[0]["used"], again[0]["window"]) == (4, "month")
        assert again[0]["until"].endswith("-01T00:00:00Z")


async def cli(running: Running, *words: str | Path) -> tuple[int, str, str]:
    """A command about the app that runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", *map(str, words)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"NATS_URL": running.broker.address},
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_status_and_explain_show_what_is_left(processor: Start, tmp_path: Path) -> None:
    """Of each budget: to people, to programs, over NATS, and beside the line that allows a call."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        settings = top(tmp_path, budget("requests", 20, "life") + "[budgets]\nbytes = 5000\n", web.host)
        async with processor(routes, settings, ask=ASK) as running:
            await ask(running, {"url": web.url, "calls": 3})
            code, out, _ = await cli(running, "status", running.path, "--format", "json")
            assert code == 0
            shown = orjson.loads(out.splitlines()[-1])
            used, held, left = (shown.pop(name) for name in ("used", "held", "left"))
            assert used <= 3 <= used + held == 20 - left  # the last one may be held by a lease still
            assert shown == {
                "budget": "b", "kind": "requests", "limit": 20, "window": "life", "until": None,
                "then": "deny", "routes": ["r"], "place": "policy.toml:3",
            }  # fmt: skip
            _, out, _ = await cli(running, "status", running.path, "--format", "human")
            assert re.search(r"^budget b: [34] of 20 requests used", out, re.MULTILINE)
            reply = await running.broker.client.request("ctl.app.api.budget.status", b'{"route": "r"}', 10)
            [again] = orjson.loads(reply.data)["budgets"]
            assert again.items() >= shown.items()
            assert again["left"] in (16, 17)
            code, out, _ = await cli(
                running,
                "policy",
                "explain",
                running.path,
                "r",
                "http.get",
                f"{web.url}/x",
                "--format",
                "human",
            )
            assert code == 0
            assert "charged to budget b (policy.toml:3): 20 requests in a life, of which 1" in out
            assert (
                "charged to budget bytes (policy.toml:10): 5,000 bytes in a run, of which 5,000 are left"
                in out
            )
        code, out, _ = await cli(
            running, "policy", "explain", running.path, "r", "http.get", f"{web.url}/x", "--format", "json"
        )
        assert [each["budget"] for each in orjson.loads(out)["budgets"]] == ["b", "bytes"]


async def test_a_line_that_is_renewed_begins_again(
    processor: Start, tmp_path: Path, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`policy renew` takes the line that E331 names; a processor that runs follows, and needs no reload."""
    monkeypatch.setattr("processor.service._RENEWED_S", 0.05)
    source = ASK.replace("BudgetExceededError", "CapabilityError")
    async with serving() as web:
        lines = ["[[capability]]", 'name = "http"', f'resource = "{web.host}"', 'methods = ["get"]']
        (tmp_path / "policy.toml").write_text("\n".join([*lines, "expires_minutes = 5"]))
        [digest] = load([tmp_path / "policy.toml"]).expiring
        routes = ROUTE.format(host=web.host)
        async with processor(routes, "policy: policy.toml", ask=source) as running:
            assert await ask(running, {"url": web.url}) == [[200]]
            long_ago = orjson.dumps({"v": 1, "seen": {digest: 1}})
            await running.broker.publish_stored(Outgoing(policy_record("app"), long_ago, KEPT))

            async def code_of_a_call() -> Any:
                [[made]] = await ask(running, {"url": web.url})
                return made

            async def is_expired() -> bool:
                made = await code_of_a_call()
                return made != 200 and "To renew it: processor policy renew CONFIG policy.toml:1" in made[1]

            await wait_until(is_expired, "the line has expired")
            code, _, err = await cli(running, "policy", "renew", running.path, "policy.toml:2")
            assert code == 2
            assert "policy.toml:2 is no line of the policy" in err.replace("\n", " ")
            code, _, err = await cli(running, "policy", "renew", running.path, "policy.toml:1")
            assert code == 0, err
            assert "the time of policy.toml:1 begins again" in err

            async def is_allowed() -> bool:
                return await code_of_a_call() == 200

            await wait_until(is_allowed, "the line is renewed")


async def test_the_audit_has_denials_of_budgets_and_that_most_is_used(
    processor: Start, tmp_path: Path, wait_until: Any
) -> None:
    """A call that a budget denies is a denial by its line; 90 % is an entry of its own, once."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        settings = top(tmp_path, budget("requests", 10, "life"), web.host)
        async with processor(routes, settings, ask=ASK) as running:
            await ask(running, {"url": web.url, "calls": 11})

            async def entries() -> list[Any]:
                records = await running.stored("p.app.audit.r.*")
                return [orjson.loads(line) for record in records for line in record.payload.split(b"\n")[1:]]

            found = await wait_until(entries, "the run has entries")
    calls = [entry for entry in found if entry["e"] == "http"]
    assert [entry["d"] for entry in calls] == ["allow"] * 10 + ["deny"]
    assert (calls[-1]["code"], calls[-1]["rule"]) == ("E332", "policy.toml:3")
    [told] = [entry for entry in found if entry["e"] == "budget"]
    assert (told["name"], told["window"], told["used"], told["limit"]) == ("b", "life", 9, 10)
    assert told["fate"] == "committed"


async def test_a_policy_is_learned_from_what_was_done(
    processor: Start, tmp_path: Path, wait_until: Any
) -> None:
    """In shadow mode all is done and noted; what is learned from it allows the same, and no more."""
    async with serving() as web:
        (tmp_path / "policy.toml").write_text('[settings]\nmode = "shadow"\n')
        async with processor(ROUTE.format(host=web.host), "policy: policy.toml", ask=ASK) as running:
            await ask(running, {"url": f"{web.url}/a"}, {"url": f"{web.url}/a"}, {"url": f"{web.url}/b"})

            async def learned() -> str:
                code, out, err = await cli(running, "policy", "learn", running.path, "--since", "1h")
                assert code == 0, err
                return out if out.count("[[capability]]") == 2 else ""

            text = await wait_until(learned, "the audit has been copied")
            assert f'# used 2 times\n[[capability]]\nname = "http"\nresource = "{web.url}/a"' in text
            (tmp_path / "learned.toml").write_text(text)
            diff = ["policy", "diff", running.path, tmp_path / "learned.toml", "--format", "human"]
            code, out, _ = await cli(running, *diff)
            assert code == 0
            assert out.endswith(
                "2 of 2 things that were done are decided otherwise\n"
            )  # shadow becomes allow
            (tmp_path / "learned.toml").write_text(text.partition("\n\n")[0])
            code, out, _ = await cli(running, *diff)
            assert code == 1
            assert f"route r: http get {web.url}/b, 1 time: shadow becomes deny" in out
