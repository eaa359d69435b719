"""What the audit has of a route: entries in the commit of what they led to, in a chain for each partition."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from processor.audit import GENESIS, AuditRecord, document_of
from processor.context.history import Author
from processor.context.position import Position
from processor.context.subjects import SubjectParts, last_partition
from processor.operate.control import Control
from processor.operate.edits import ContextEdits
from tests.conftest import waited
from tests.running import Running, Start
from tests.web import Web, serving, to

CALL = """
class Runnable:
    def process(self, queries):
        for query in queries:
            self.context["n"] = self.context.get("n", 0) + 1
            headers = {"key": str(self.secrets["key"])} if query.get("secret") else {}
            said = []
            for url in query["urls"]:
                try:
                    answer = self.requests.request(
                        query.get("method", "get"), url, headers=headers, data=query.get("body")
                    )
                    said.append(answer.status_code)
                except self.requests.exceptions.RequestException as err:
                    said.append(err.code)
            for subject in query.get("emits", []):
                self.emit(subject, {"x": 1})
            if query.get("spin"):
                while True:
                    pass
            if query.get("fail"):
                raise ValueError("no")
            yield {"said": said}
"""
ROUTE = """
r:
  input: {{subject: "in.*", create: true}}
  key: subject.2
  partitions: 4
  runnable: call.py
  output: out
  retry: {{attempts: 1}}
  secrets: [key]
  emits: ["told.*"]
  limits: {{wall_s: 2}}
  outbound: {{allowed_domains: ["{host}"]}}
"""
CANARY = "canary-value"


def line(name: str, resource: str, method: str, more: str = "") -> str:
    return f'[[capability]]\nname = "{name}"\nresource = "{resource}"\nmethods = ["{method}"]\n{more}\n'


def governed(web: Web, tmp_path: Path, audit: str = "", policy: str | None = None) -> tuple[str, str]:
    """The routes of a configuration, and what stands at its top; without `policy` most is allowed."""
    if policy is None:
        policy = (
            line("http", web.host, "*") + line("secret", "key", "use") + line("emit", "told.a", "publish")
        )
    (tmp_path / "policy.toml").write_text(policy)
    (tmp_path / "key").write_text(CANARY)
    top = f'policy: policy.toml\nsecrets: {{key: {{file: key, hosts: ["http://{web.host}"]}}}}\n{audit}'
    return ROUTE.format(host=web.host), top


async def chains(running: Running) -> dict[str, list[dict[str, Any]]]:
    """The entries of every chain of the app, each of which leads to the head in its position."""
    heads, entries = {}, dict[str, list[dict[str, Any]]]()
    async for stored in running.broker.history("P_app", ["p.app.audit.r.*", "p.app.pos.r.*"]):
        if SubjectParts.of(stored.subject).kind == "pos":  # behind the records of its commit
            head = heads.get(f"r.{last_partition(stored.subject)}", GENESIS)
            assert Position.read(stored).chain == head
            continue
        record = AuditRecord.decode(stored.payload)
        record.check_follows(heads.get(record.chain, GENESIS))
        heads[record.chain] = record.head
        entries.setdefault(record.chain, []).extend(map(document_of, record.lines))
    return entries


async def audited(running: Running, count: int) -> list[dict[str, Any]]:
    """All entries, as soon as there are so many, oldest first."""

    async def enough() -> list[dict[str, Any]] | None:
        found = [entry for chain in (await chains(running)).values() for entry in chain]
        return sorted(found, key=lambda entry: entry["t"]) if len(found) >= count else None

    found: list[dict[str, Any]] = await waited(enough, f"{count} entries of the audit")
    assert len(found) == count, found
    return found


def of(entry: Mapping[str, Any], *keys: str) -> list[Any]:
    return [entry.get(key) for key in keys]


async def test_a_call_has_an_entry_in_the_commit_of_its_run(processor: Start, tmp_path: Path) -> None:
    """It says who asked for what, which line allowed it and what came of it: by hashes, sizes and names."""
    async with serving(lambda asked: None) as web:
        web.say = lambda asked: b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
        routes, top = governed(web, tmp_path)
        async with processor(routes, top, call=CALL) as running:
            url = f"{web.url}/v1/pay?token=query-canary"
            await running.publish(
                "in.a", {"urls": [url], "method": "post", "secret": True, "body": "b-canary"}
            )
            assert await running.documents("out", 1) == [{"said": [200]}]
            [entry] = await audited(running, 1)
            [record] = await running.stored("p.app.audit.r.>")
            [output] = await running.stored("p.app.out.out")
            assert output.sequence < record.sequence  # and the position of both is the same commit
            program = running.service._config.routes["r"].program.id
            assert running.metric("processor_audit_entries_total", route="r") == 1
            intents = await running.stored("p.app.late.>")
    assert of(entry, "n", "e", "d", "fate", "route", "op", "on") == [
        1, "http", "allow", "committed", "r", "post", f"{web.url}/v1/pay",
    ]  # fmt: skip
    assert of(entry, "in", "actor", "rule", "status", "secrets") == [
        [1, 1], f"program:{program}", "policy.toml:1", 200, ["key"],
    ]  # fmt: skip
    assert entry["res"] == hashlib.sha256(b"200\nfine").hexdigest()[:32]
    head = f"POST {url}\n".encode()
    [asked] = web.asked
    assert asked.headers["key"] == CANARY
    assert entry["bytes"][1] == 4
    assert entry["bytes"][0] > len(head)
    assert orjson.loads(intents[0].payload)["id"] == entry["of"]
    said = b"".join(m.payload for m in (record, *intents))
    assert not [word for word in (CANARY, "query-canary", "b-canary") if word.encode() in said]


async def test_a_denial_has_an_entry_whatever_becomes_of_its_run(processor: Start, tmp_path: Path) -> None:
    """Caught it is committed with the run; of a run that fails, or whose guest dies, it is dropped."""
    async with serving() as web:
        routes, top = governed(web, tmp_path, policy="")
        async with processor(routes, top, call=CALL) as running:
            asked = {"urls": [f"{web.url}/x"]}
            await running.publish("in.a", asked)
            caught = (await audited(running, 1))[-1]
            await running.publish("in.a", {**asked, "fail": True})
            failed = (await audited(running, 2))[-1]
            await running.publish("in.a", {**asked, "spin": True})
            died = (await audited(running, 3))[-1]
            await running.dead_letters("r", 2)
    for entry, fate, sequence in ((caught, "committed", 1), (failed, "dropped", 2), (died, "dropped", 3)):
        assert of(entry, "e", "d", "fate", "code", "rule", "in") == [
            "http", "deny", fate, "E330", "default", [sequence, sequence],
        ]  # fmt: skip
        assert entry["on"] == f"{web.url}/x"
    assert len({entry["run"] for entry in (caught, failed, died)}) == 3
    assert not web.asked


async def test_the_entries_of_a_batch_that_is_split_are_dropped(processor: Start, tmp_path: Path) -> None:
    """Each run has its own: that of the whole, then those of its parts; a call is made, and noted, once."""
    async with serving() as web:
        routes, top = governed(web, tmp_path)
        async with processor(routes, top, call=CALL) as running:
            made = [{"urls": [f"{web.url}/{n}"], "fail": n == 2} for n in range(4)]
            await running.publish("in.a", *made)
            await running.dead_letters("r", 1)
            await running.documents("out", 3)
            found = await audited(running, 4)
    assert sorted(entry["on"] for entry in found) == [f"{web.url}/{n}" for n in range(4)]
    assert len(web.asked) == 4
    assert {entry["fate"] for entry in found} <= {"committed", "dropped"}


async def test_redirects_secrets_and_emits_have_their_say(processor: Start, tmp_path: Path) -> None:
    """Each redirect has an entry of its own, and so has a secret or an emit that is denied."""
    async with serving(lambda asked: to("/there") if asked.target == "/here" else None) as web:
        web.say = lambda asked: to("/there") if asked.target == "/here" else b"HTTP/1.1 204 No\r\n\r\n"
        lines = line("http", web.host, "get") + line("emit", "told.a", "publish")
        routes, top = governed(web, tmp_path, policy=lines)
        async with processor(routes, top, call=CALL) as running:
            await running.publish("in.a", {"urls": [f"{web.url}/here"], "emits": ["told.a"]})
            hop, call = await audited(running, 2)
            await running.publish("in.a", {"urls": [f"{web.url}/x"], "secret": True})
            secret, denied = (await audited(running, 4))[2:]
            await running.publish("in.b", {"urls": [], "emits": ["told.b"]})
            emit = (await audited(running, 5))[-1]
            await running.dead_letters("r", 1)
    assert [of(each, "op", "on", "d", "status") for each in sorted((hop, call), key=lambda e: e["n"])] == [
        ["get", f"{web.url}/there", "allow", None], ["get", f"{web.url}/here", "allow", 204],
    ]  # fmt: skip
    assert hop["run"] == call["run"]
    assert {of(each, "e")[0]: of(each, "op", "on", "d", "code") for each in (secret, denied)} == {
        "secret": ["use", "key", "deny", "E330"], "http": ["get", f"{web.url}/x", "error", "E330"],
    }  # fmt: skip
    assert of(emit, "e", "op", "on", "d", "fate") == ["emit", "publish", "told.b", "deny", "dropped"]


async def test_what_the_configuration_denies_is_a_denial(processor: Start, tmp_path: Path) -> None:
    """A host that the policy allows and `outbound` does not: the rule that decided is the configuration."""
    async with serving() as web:
        routes, top = governed(web, tmp_path, policy=line("http", "other.example", "get"))
        async with processor(routes, top, call=CALL) as running:
            await running.publish("in.a", {"urls": ["http://other.example/"]})
            [entry] = await audited(running, 1)
    assert of(entry, "d", "code", "rule", "on") == ["deny", "E325", "config", "http://other.example/"]


async def test_shadow_mode_denies_nothing_and_notes_it(processor: Start, tmp_path: Path) -> None:
    """What would be denied is done, and its entry says both."""
    async with serving() as web:
        routes, top = governed(web, tmp_path, policy='[settings]\nmode = "shadow"\n')
        async with processor(routes, top, call=CALL) as running:
            await running.publish("in.a", {"urls": [f"{web.url}/x"]})
            [entry] = await audited(running, 1)
    assert of(entry, "d", "code", "status") == ["shadow", "E330", 200]


async def test_without_a_policy_nothing_is_noted(processor: Start, tmp_path: Path) -> None:
    """The default of a route without one is off; `audit: {level: calls}` notes its calls all the same."""
    async with serving() as web:
        routes, top = governed(web, tmp_path)
        top = top.replace("policy: policy.toml\n", "")
        asked = {"urls": [f"{web.url}/x"], "method": "post"}
        async with processor(routes, top, call=CALL) as running:
            await running.publish("in.a", asked)
            assert await running.documents("out", 1) == [{"said": [200]}]
            assert not await running.stored("p.app.audit.r.*")
            assert not await running.stored("p.app.late.>")
        async with processor(routes, f"{top}\naudit: calls", call=CALL) as running:
            await running.publish("in.a", asked)
            [entry] = await audited(running, 1)
    assert of(entry, "d", "rule", "policy") == ["allow", "config", None]


async def test_each_run_has_an_entry_at_level_runs(processor: Start, tmp_path: Path) -> None:
    """Counts, sizes and a digest of all that it stored, which anybody can compute from the stream."""
    async with serving() as web:
        routes, top = governed(web, tmp_path, "audit: runs")
        async with processor(routes, top, call=CALL) as running:
            await running.publish("in.a", {"urls": [], "emits": ["told.a"]})
            [entry] = await audited(running, 1)
            stored = [each async for each in running.broker.history("P_app", ["p.app.out.>"])]
            await running.publish("in.a", {"urls": [], "fail": True})
            failed = (await audited(running, 2))[-1]
    digest = hashlib.sha256(b"".join(s.subject.encode() + b"\0" + s.payload for s in stored)).hexdigest()
    assert of(entry, "e", "d", "fate", "in", "out", "emits", "digest") == [
        "run", "allow", "committed", [1, 1], 1, 1, digest,
    ]  # fmt: skip
    assert entry["out_bytes"] == len(b'{"said":[]}')
    assert entry["ctx"][0] == 1
    assert entry["cpu_us"] > 0
    assert of(failed, "e", "d", "fate", "code") == ["run", "error", "dropped", "E304"]


async def test_edits_resets_and_another_key_keep_the_chain(processor: Start, tmp_path: Path) -> None:
    """Whoever writes a position carries the head of its chain: numbers go on, and each record follows."""
    async with serving() as web:
        routes, top = governed(web, tmp_path)
        asked = {"urls": [f"{web.url}/x"]}
        async with processor(routes, top, call=CALL) as running:
            await running.publish("in.a", asked)
            await audited(running, 1)
            author, route = Author("ann", "why"), running.service._config.routes["r"]
            await ContextEdits(running.broker, route).set("a", "n", 41, author)
            await running.publish("in.a", asked)
            await audited(running, 2)
            await Control(running.broker, "app").reset("r", 1, keep_context=False)
            await audited(running, 4)  # both are read again
        async with processor(routes.replace("subject.2", "header.k"), top, call=CALL) as running:
            await running.publish("in.a", asked, headers={"k": "a"})
            await audited(running, 5)
            found = await chains(running)
    assert sum(map(len, found.values())) == 5
    for entries in found.values():
        assert [entry["n"] for entry in entries] == list(range(1, len(entries) + 1))


async def test_a_call_that_was_made_before_has_no_second_entry(processor: Start, tmp_path: Path) -> None:
    """An answer that is kept for a later try is no call: neither an entry nor an intent."""
    async with serving() as web:
        routes, top = governed(web, tmp_path)
        routes = routes.replace("attempts: 1", "attempts: 3, base_ms: 0") + "  calls: {replay: all}\n"
        async with processor(routes, top, call=CALL) as running:
            await running.publish("in.a", {"urls": [f"{web.url}/x"], "method": "post", "fail": True})
            await running.dead_letters("r", 1)
            [entry] = await audited(running, 1)
            assert len(await running.stored("p.app.late.r.*")) == 1
    assert of(entry, "fate", "status") == ["dropped", 200]
    assert len(web.asked) == 1


async def test_an_intent_that_cannot_be_stored_keeps_the_call_from_being_made(
    processor: Start, tmp_path: Path
) -> None:
    """The Runnable is told, and the server is not asked."""
    async with serving() as web:
        routes, top = governed(web, tmp_path)
        async with processor(routes, top, call=CALL) as running:
            info = await running.broker.stream("P_app")
            assert info is not None
            config = {**info["config"], "max_msg_size": 200}
            await running.broker.api("STREAM.UPDATE.P_app", config)
            url = f"{web.url}/{'x' * 300}"
            await running.publish("in.a", {"urls": [url], "method": "post"})
            await waited(
                lambda: running.metric("processor_requests_total", route="r", reason="E317"), "the refusal"
            )
            await running.broker.api("STREAM.UPDATE.P_app", {**config, "max_msg_size": -1})
            assert await running.documents("out", 1) == [{"said": ["E317"]}]
    assert not web.asked
