"""A route under a policy: what it may do, what a denial says, and what becomes of the message."""

from __future__ import annotations

import asyncio
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import orjson
import pytest

from processor.context.sightings import first_seen
from processor.context.subjects import policy_record
from processor.embedded import EmbeddedServer
from processor.jetstream import KEPT, Outgoing
from processor.policy import load
from tests.running import Running, Start, connected
from tests.web import serving, to

ASK = """
class Runnable:
    def process(self, queries):
        for query in queries:
            headers = {"key": str(self.secrets["key"])} if query.get("secret") else {}
            try:
                said = self.requests.request(query.get("method", "get"), query["url"], headers=headers)
                yield {"status": said.status_code}
            except self.requests.exceptions.RequestException as err:
                if query.get("raise"):
                    raise
                yield {"code": err.code, "said": str(err)}
"""
ROUTE = """
r:
  input: {{subject: "in.*", create: true}}
  runnable: ask.py
  output: out
  retry: {{attempts: 1}}
  secrets: [key]
  outbound: {{allowed_domains: ["{host}"]}}
"""


def top(tmp_path: Path, policy: str, host: str = "a.example") -> str:
    (tmp_path / "policy.toml").write_text(policy)
    (tmp_path / "key").write_text("canary-value")
    return f'policy: policy.toml\nsecrets: {{key: {{file: key, hosts: ["http://{host}"]}}}}'


def line(name: str, resource: str, method: str, more: str = "") -> str:
    return f'[[capability]]\nname = "{name}"\nresource = "{resource}"\nmethods = ["{method}"]\n{more}\n'


async def said(running: Running, *queries: dict[str, object]) -> list[dict[str, object]]:
    """What the route made of these queries."""
    before = len(await running.stored("out"))
    await running.publish("in.a", *queries)
    found: list[dict[str, object]] = await running.documents("out", before + len(queries))
    return found[before:]


async def test_a_call_that_no_line_allows_is_refused_with_the_lines_that_would(
    processor: Start, tmp_path: Path
) -> None:
    """The Runnable sees E330; what it says, put into the file, allows that call and no other."""
    async with (
        serving() as web,
        processor(ROUTE.format(host=web.host), top(tmp_path, "", web.host), ask=ASK) as running,
    ):
        [denied] = await said(running, {"url": f"{web.url}/v1/pay?x=1"})
        assert denied["code"] == "E330"
        assert not web.asked
        assert running.metric("processor_decisions_total", route="r", reason="http_deny") == 1
        lines = str(denied["said"]).partition("To allow it, add:\n")[2]
        (tmp_path / "policy.toml").write_text(lines)
        assert await running.reload() == ["r"]
        await running.until_ready()
        allowed, other, posted = await said(
            running, {"url": f"{web.url}/v1/pay"}, {"url": f"{web.url}/v1"},
            {"url": f"{web.url}/v1/pay", "method": "post"},
        )  # fmt: skip
    assert allowed == {"status": 200}
    assert (other["code"], posted["code"]) == ("E330", "E330")
    assert [asked.target for asked in web.asked] == ["/v1/pay"]


async def test_an_uncaught_denial_is_a_dead_letter(processor: Start, tmp_path: Path) -> None:
    """With the code, what was denied, and the line of the file that denies it."""
    async with serving() as web:
        text = line("http", web.host, "get") + line("http", f"{web.url}/secret/**", "get", 'effect = "deny"')
        routes, settings = ROUTE.format(host=web.host), top(tmp_path, text, web.host)
        async with processor(routes, settings, ask=ASK) as running:
            await running.publish("in.a", {"url": f"{web.url}/secret/x", "raise": True})
            [letter] = await running.dead_letters("r")
    assert letter.headers["x-error-code"] == "E330"
    reason = letter.headers["x-dead-letter-reason"]
    assert f"http get {web.url}/secret/x is denied to route r by policy.toml:6" in reason
    assert not web.asked


async def test_a_redirect_is_asked_for_too(processor: Start, tmp_path: Path) -> None:
    """Where an allowed answer leads is a call of its own: what no line allows is never requested."""
    async with serving(lambda asked: to("/elsewhere")) as web:
        text = line("http", f"{web.url}/start", "get")
        routes, settings = ROUTE.format(host=web.host), top(tmp_path, text, web.host)
        async with processor(routes, settings, ask=ASK) as running:
            [denied] = await said(running, {"url": f"{web.url}/start"})
    assert denied["code"] == "E330"
    assert f"http get {web.url}/elsewhere is not allowed" in str(denied["said"])
    assert [asked.target for asked in web.asked] == ["/start"]


async def test_a_secret_in_a_redirect_is_in_no_denial(
    processor: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that leads to a path with the secret in it is denied without a word of the secret."""
    async with serving(lambda asked: to(f"/{asked.headers['key']}")) as web:
        text = line("http", f"{web.url}/start", "get") + line("secret", "key", "use")
        routes, settings = ROUTE.format(host=web.host), top(tmp_path, text, web.host)
        async with processor(routes, settings, ask=ASK) as running:
            [denied] = await said(running, {"url": f"{web.url}/start", "secret": True})
    assert f"http get {web.url}/*** is not allowed" in str(denied["said"])
    assert [asked.headers["key"] for asked in web.asked] == ["canary-value"]
    assert "is not allowed to route r" in caplog.text
    assert "canary" not in caplog.text + str(denied)


async def test_a_secret_is_asked_for_by_its_name(processor: Start, tmp_path: Path) -> None:
    """A host that may be asked gives no right to a secret; its value is sent only with both lines."""
    async with serving() as web:
        text = line("http", web.host, "get")
        routes, settings = ROUTE.format(host=web.host), top(tmp_path, text, web.host)
        async with processor(routes, settings, ask=ASK) as running:
            [denied] = await said(running, {"url": web.url, "secret": True})
            assert "secret use key is not allowed to route r" in str(denied["said"])
            assert not web.asked
            (tmp_path / "policy.toml").write_text(text + line("secret", "key", "use"))
            await running.reload()
            await running.until_ready()
            assert await said(running, {"url": web.url, "secret": True}) == [{"status": 200}]
    assert [asked.headers["key"] for asked in web.asked] == ["canary-value"]


async def test_an_emit_is_asked_for(processor: Start, tmp_path: Path) -> None:
    """What the configuration lists and the policy denies is not sent: the message is a dead letter."""
    source = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                self.emit(query["to"], {"n": 1})
    """
    routes = """
    r:
      input: {subject: "in.*", create: true}
      runnable: emits.py
      emits: ["orders.*"]
      retry: {attempts: 1}
    """
    async with processor(
        routes, top(tmp_path, line("emit", "orders.eu", "publish")), emits=source
    ) as running:
        await running.publish("in.a", {"to": "orders.us"}, {"to": "orders.eu"})
        [letter] = await running.dead_letters("r")
        assert await running.documents("orders.*", 1) == [{"n": 1}]
    assert letter.headers["x-error-code"] == "E330"
    assert "emit publish orders.us is not allowed to route r" in letter.headers["x-dead-letter-reason"]


async def test_a_shadow_denies_nothing_and_says_what_it_would(
    processor: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The call is made, counted as such, and logged once with the lines that would allow it."""
    async with serving() as web:
        routes = ROUTE.format(host=web.host)
        settings = top(tmp_path, '[settings]\nmode = "shadow"\n', web.host)
        async with processor(routes, settings, ask=ASK) as running:
            assert await said(running, {"url": web.url}, {"url": web.url}) == [{"status": 200}] * 2
            assert running.metric("processor_decisions_total", route="r", reason="http_shadow") == 2
    told = [record.getMessage() for record in caplog.records if "shadow" in record.getMessage()]
    assert len(told) == 1
    assert "[[capability]]" in told[0]


async def test_a_line_expires_from_its_first_sight_over_restarts(processor: Start, tmp_path: Path) -> None:
    """The app keeps when it first saw a line; later processes count from there; a changed line is new."""
    async with serving() as web:
        text = line("http", web.host, "get", "expires_minutes = 60")
        routes, settings = ROUTE.format(host=web.host), top(tmp_path, text, web.host)
        async with processor(routes, settings, ask=ASK) as running:
            assert await said(running, {"url": web.url}) == [{"status": 200}]
            [kept] = await running.stored(policy_record("app"))
            [(digest, moment)] = orjson.loads(kept.payload)["seen"].items()
            assert {digest} == load([tmp_path / "policy.toml"]).expiring
            long_ago = orjson.dumps({"v": 1, "seen": {digest: moment - 64 * 60_000_000}})
            await running.broker.publish_stored(Outgoing(policy_record("app"), long_ago, KEPT))
        async with processor(routes, settings, ask=ASK) as running:
            [denied] = await said(running, {"url": web.url})
            assert denied["code"] == "E331"
            assert "policy.toml:1 expired 4 min ago (expires_minutes = 60)" in str(denied["said"])
            (tmp_path / "policy.toml").write_text(text.replace("= 60", "= 61"))
            await running.reload()
            await running.until_ready()
            assert await said(running, {"url": web.url}) == [{"status": 200}]


async def test_a_policy_with_a_fault_keeps_the_old_one(processor: Start, tmp_path: Path) -> None:
    """A reload names every fault by line and column, and what ran goes on."""
    async with serving() as web:
        text = line("http", web.host, "get")
        routes, settings = ROUTE.format(host=web.host), top(tmp_path, text, web.host)
        async with processor(routes, settings, ask=ASK) as running:
            (tmp_path / "policy.toml").write_text(text + line("htp", web.host, "get"))
            with pytest.raises(Exception, match=r"policy\.toml:7:1 E111 there is no kind 'htp'"):
                await running.reload()
            assert await said(running, {"url": web.url}) == [{"status": 200}]


async def cli(*arguments: str | Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(
        "app: app\npolicy: [policy.toml]\nroutes:\n  enrich:\n    input: in\n    code: |\n"
        "      class Runnable:\n          def process(self, queries):\n              return []\n"
    )
    (tmp_path / "policy.toml").write_text(
        line("http", "https://api.example.com/v1/*", "get")
        + line("http", "https://api.example.com/v1/admin", "get", 'effect = "deny"')
        + '[[test]]\nroute = "enrich"\nop = "http.get"\ntarget = "https://api.example.com/v1/pay"\n'
        + '[[test]]\nroute = "enrich"\nop = "http"\ntarget = "https://api.example.com/v1/admin"\n'
        + 'expect = "deny"\n'
    )
    return tmp_path / "config.yaml"


async def test_explain_names_the_line_that_decides(config: Path) -> None:
    """Allowed: the line, and the others that match. Denied: exit code 1, and lines that would allow it."""
    target = "https://api.example.com/v1/pay"
    done = await cli("policy", "explain", config, "enrich", "http.get", target, "--format", "human")
    assert done[:2] == (0, f"allow: http get {target} (policy.toml:1)\n")
    code, out, _ = await cli("policy", "explain", config, "enrich", "http.post", target, "--format", "human")
    assert code == 1
    assert out.startswith(
        f"deny: E330 http post {target} is not allowed to route enrich: policy.toml has no line"
    )
    assert out.endswith('methods = ["post"]\nroutes = ["enrich"]\n')
    code, out, _ = await cli("policy", "explain", config, "enrich", "http", f"{target[:-3]}admin")
    assert (code, orjson.loads(out)["rule"], orjson.loads(out)["also"]) == (
        1,
        "policy.toml:6",
        ["policy.toml:1"],
    )


async def test_the_tests_of_a_policy_are_run(config: Path) -> None:
    """Every [[test]] is tried; one that is not as expected is named, and the exit code is 1."""
    done = await cli("policy", "test", config, "--format", "human")
    assert done[:2] == (0, "2 of 2 tests are as expected\n")
    policy = config.parent / "policy.toml"
    policy.write_text(policy.read_text().replace('expect = "deny"', 'expect = "allow"'))
    code, out, _ = await cli("policy", "test", config, "--format", "human")
    assert code == 1
    assert re.search(r"policy\.toml:15 enrich http get .*/v1/admin: expected allow, found deny", out)


async def test_check_names_faults_and_what_may_be_a_mistake(config: Path) -> None:
    """Faults by line and column with exit code 2, in `check` as well; a doubtful line with 0."""
    policy = config.parent / "policy.toml"
    text = policy.read_text()
    policy.write_text(text + line("http", "*", "*", 'routes = ["enrch"]'))
    code, out, _ = await cli("policy", "check", config, "--format", "human")
    assert code == 0
    assert "no route is named 'enrch'. Did you mean 'enrich'?" in out
    assert "methods: '*' allows every method" in out
    assert out.endswith("1 policy file without a fault\n")
    policy.write_text(text + line("http", "*", "gett"))
    for verb in (("policy", "check", config), ("check", config)):
        code, _, err = await cli(*verb)
        assert code == 2
        assert "policy.toml:23:1 E111 http has no method 'gett'; it has get, head, " in err
        assert "delete. Did you mean 'get'?" in err


async def test_show_prints_the_lines_for_a_route(config: Path) -> None:
    """In one form, each with its place; what is printed is TOML again, and means the same."""
    code, out, _ = await cli("policy", "show", config, "enrich", "--format", "human")
    assert code == 0
    again = config.parent / "again.toml"
    again.write_text(out)
    first, second = load([config.parent / "policy.toml"]), load([again])
    assert [rule.digest for rule in first.policies[0].rules] == [
        rule.digest for rule in second.policies[0].rules
    ]


async def test_show_writes_short_tables_as_lines_in_any_of_its_formats(config: Path) -> None:
    """TOML with places, JSON objects, or Cedar; a file that Cedar has no words for is refused by its line."""
    policy = config.parent / "policy.toml"
    policy.write_text("[net]\nallow = ['a.example']\n[budgets]\nrequests = 5\n")
    code, out, _ = await cli("policy", "show", config, "--format", "toml")
    assert code == 0
    assert '# policy.toml:2\n[[capability]]\nname = "http"\nresource = "a.example"' in out
    assert '# policy.toml:4\n[[budget]]\nname = "requests"\nkind = "requests"\nlimit = 5' in out
    code, out, _ = await cli("policy", "show", config, "enrich", "--format", "json")
    rule, budget = map(orjson.loads, out.splitlines())
    assert (rule["place"], rule["resource"]) == ("policy.toml:2", "a.example")
    assert (budget["budget"], budget["limit"], budget["then"]) == ("requests", 5, "deny")
    code, out, _ = await cli("policy", "show", config, "--format", "cedar")
    assert code == 0
    assert '@place("policy.toml:2")\npermit (principal, action in [Action::"http.delete", ' in out
    policy.write_text("[net]\ndeny = ['https://a.example/*/**/x']\n")
    code, out, err = await cli("policy", "show", config, "--format", "cedar")
    assert (code, out) == (1, "")
    assert "policy.toml:2: Cedar cannot say a path with '*'" in err


async def test_results_of_tests_are_written_as_junit(config: Path) -> None:
    """A suite with a case for each [[test]], and a failure in each that is not as expected."""
    policy = config.parent / "policy.toml"
    policy.write_text(policy.read_text().replace('expect = "deny"', 'expect = "allow"'))
    results = config.parent / "results.xml"
    code, _, _ = await cli("policy", "test", config, "--junit", results)
    suite = ElementTree.parse(results).getroot()
    assert (code, suite.get("tests"), suite.get("failures")) == (1, "2", "1")
    [right, wrong] = suite
    assert (right.get("classname"), [*right]) == ("policy.toml:11", [])
    assert [each.get("message") for each in wrong] == ["expected allow, found deny (policy.toml:6)"]
    assert (await cli("policy", "check", config, "--junit", results))[0] == 2


@pytest.fixture
def two_routes(config: Path) -> Path:
    """A configuration whose two routes have a policy file each, with a budget of the same name."""
    budget = '[[budget]]\nname = "b"\nkind = "requests"\nlimit = 5\nwindow = "day"\n'
    for name in ("one", "two"):
        (config.parent / f"{name}.toml").write_text(budget)
    route = "    input: in\n    runnable: r.py\n"
    (config.parent / "r.py").write_text(
        "class Runnable:\n    def process(self, queries):\n        return []\n"
    )
    routes = f"routes:\n  a:\n{route}    policy: one.toml\n  b:\n{route}    policy: two.toml\n"
    config.write_text(f"app: app\n{routes}")
    return config


async def test_routes_have_one_budget_of_a_name(two_routes: Path) -> None:
    """An app has one account for a name: two files of two routes cannot mean two by it."""
    code, _, err = await cli("policy", "check", two_routes)
    assert code == 2
    assert "two.toml:1:1 E111 there is a budget 'b' already, in one.toml:1: give one another name" in err


async def test_two_processors_agree_when_a_line_was_first_seen(
    nats_server: EmbeddedServer, processor: Start, tmp_path: Path
) -> None:
    """The record is written with a fence: whoever comes second counts from what the first wrote."""
    async with (
        processor(ROUTE.format(host="a.example"), top(tmp_path, ""), ask=ASK),
        connected(nats_server.url) as one,
        connected(nats_server.url) as two,
    ):
        asking = [
            first_seen(broker, "app", [f"d{number % 3}", "both"], 100 + number)
            for number, broker in enumerate([one, two] * 4)
        ]
        found = await asyncio.gather(*asking)
        again = await first_seen(one, "app", ["d0", "d1", "d2", "both"], 999)
    assert {each["both"] for each in found} == {again["both"]}
    assert all(each.items() <= again.items() for each in found)


async def test_the_example_has_no_fault_and_passes_its_tests() -> None:
    """What is shipped in configs/examples/policy is a policy that `check` has nothing to say of."""
    example = Path(__file__).parents[2] / "configs/examples/policy/policy.yaml"
    assert (await cli("policy", "check", example, "--format", "human"))[:2] == (
        0,
        "1 policy file without a fault\n",
    )
    assert (await cli("policy", "test", example, "--format", "human"))[:2] == (
        0,
        "2 of 2 tests are as expected\n",
    )
