"""Policy files: what a line allows, what wins, what a denial says, and where a fault is."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.errors import Faults
from processor.policy import KINDS, Ask, Rules, asked, lints, load, suggest, url_target, window_at
from processor.policy.budgets import Window

NOW_US = 1_800_000_000_000_000
MINUTE_US = 60_000_000


Made = Callable[..., Rules]


@pytest.fixture
def policy(tmp_path: Path) -> Made:
    """Rules of these texts, each in a file: policy.toml, then 2.toml and so on."""

    def made(*texts: str) -> Rules:
        files = []
        for number, text in enumerate(texts, 1):
            files.append(tmp_path / ("policy.toml" if number == 1 else f"{number}.toml"))
            files[-1].write_text(text)
        return load(files)

    return made


def line(name: str, resource: str, methods: str = '["*"]', more: str = "") -> str:
    return f"[[capability]]\nname = '{name}'\nresource = '{resource}'\nmethods = {methods}\n{more}\n"


def get(url: str) -> Ask:
    return asked("http.get", url)


def test_without_a_file_everything_is_allowed() -> None:
    """A configuration without a policy is asked nothing."""
    assert Rules().decide("r", get("https://a.example/"), NOW_US).is_allowed


def test_what_no_line_allows_is_denied_with_the_lines_that_would(policy: Made) -> None:
    """The text of a denial has the place, and lines which allow exactly what was asked."""
    rules = policy(line("stock", "IBM"))
    verdict = rules.decide("enrich", asked("http.post", "https://api.example.com/v1/pay?key=1"), NOW_US)
    assert (verdict.is_allowed, verdict.code, verdict.rule) == (False, "E330", "")
    assert verdict.what == (
        "http post https://api.example.com/v1/pay is not allowed to route enrich: "
        "policy.toml has no line for it"
    )
    assert verdict.remedy == (
        'To allow it, add:\n[[capability]]\nname = "http"\nresource = "https://api.example.com/v1/pay"\n'
        'methods = ["post"]\nroutes = ["enrich"]'
    )


@pytest.mark.parametrize("is_first", [True, False])
def test_a_deny_wins_wherever_it_stands(policy: Made, is_first: bool) -> None:
    """The order of lines never matters: a deny that covers an ask is the verdict."""
    texts = [line("http", "a.example"), line("http", "https://a.example/secret/**", more="effect = 'deny'")]
    rules = policy("".join(reversed(texts) if is_first else texts))
    verdict = rules.decide("r", get("https://a.example/secret/x"), NOW_US)
    assert (verdict.code, verdict.rule) == ("E330", "policy.toml:1" if is_first else "policy.toml:6")
    assert "is denied to route r by policy.toml" in verdict.what
    assert rules.decide("r", get("https://a.example/open"), NOW_US).is_allowed


def test_a_line_can_have_the_name_of_a_tool(policy: Made) -> None:
    """As policies for the Authority Kernel have it; another resource, or method, is of a kind that is not."""
    rules = policy(line("example_*", "*", '["execute"]', "expires_minutes = 60"))
    found = [rules.decide("r", asked("tool", name), NOW_US).is_allowed for name in ("example_*", "example_a")]
    assert found == [True, False]
    with pytest.raises(Faults, match=r"E111 there is no kind 'example_tool'"):
        policy(line("example_tool", "x", '["execute"]'))


def test_every_file_must_allow(policy: Made) -> None:
    """What the organisation's file leaves out, a team's cannot give; and the other way round."""
    rules = policy(line("stock", "*"), line("stock", "IBM"))
    assert rules.decide("r", asked("stock", "IBM"), NOW_US).is_allowed
    assert "2.toml has no line for it" in rules.decide("r", asked("stock", "AAPL"), NOW_US).what
    rules = policy(line("stock", "IBM"), line("stock", "*"))
    assert "policy.toml has no line for it" in rules.decide("r", asked("stock", "AAPL"), NOW_US).what


def test_a_line_expires_from_when_it_was_first_seen(policy: Made) -> None:
    """Not from the start of a process; of several allows the one that lives longest counts."""
    rules = policy(line("stock", "IBM", more="expires_minutes = 60"))
    [digest] = rules.expiring
    ask = asked("stock", "IBM")
    seen = rules.with_seen({digest: NOW_US - 59 * MINUTE_US})
    assert seen.decide("r", ask, NOW_US).expires_us == NOW_US + MINUTE_US
    expired = rules.with_seen({digest: NOW_US - 64 * MINUTE_US}).decide("r", ask, NOW_US)
    assert (expired.code, expired.rule) == ("E331", "policy.toml:1")
    assert "expired 4 min ago (expires_minutes = 60)" in expired.what
    both = policy(line("stock", "IBM", more="expires_minutes = 60") + line("stock", "I*"))
    assert both.with_seen({digest: 0}).decide("r", ask, NOW_US).is_allowed


def test_a_line_that_is_changed_is_another(policy: Made) -> None:
    """Its time begins again where anything of it changes, and not where it is only moved."""
    [first] = policy(line("stock", "IBM", more="expires_minutes = 60")).expiring
    [moved] = policy("# a word\n" + line("stock", "IBM", more="expires_minutes = 60")).expiring
    [changed] = policy(line("stock", "IBM", more="expires_minutes = 61")).expiring
    assert first == moved != changed


def test_an_end_is_a_moment_with_its_zone(policy: Made) -> None:
    """`expires_at` ends a line for good."""
    rules = policy(line("stock", "IBM", more="expires_at = 2027-01-15T08:00:00Z"))
    assert rules.decide("r", asked("stock", "IBM"), NOW_US - 1).is_allowed
    assert rules.decide("r", asked("stock", "IBM"), NOW_US + 1).code == "E331"


def test_a_shadow_only_watches(policy: Made) -> None:
    """What a policy in shadow mode would deny is a verdict that says so, unless another file denies it."""
    shadow = "[settings]\nmode = 'shadow'\n"
    assert policy(shadow).decide("r", asked("stock", "IBM"), NOW_US).is_shadow
    assert not policy(shadow, line("stock", "X")).decide("r", asked("stock", "IBM"), NOW_US).is_shadow


@pytest.mark.parametrize(
    "routes, route, is_in",
    [("['enrich']", "enrich", True), ("['enrich']", "enrich2", False), ("['billing-*']", "billing-eu", True)],
)
def test_a_line_is_for_its_routes(policy: Made, routes: str, route: str, is_in: bool) -> None:
    """By name or pattern; without `routes`, for all."""
    rules = policy(line("stock", "*", more=f"routes = {routes}"))
    assert rules.decide(route, asked("stock", "IBM"), NOW_US).is_allowed is is_in


@pytest.mark.parametrize(
    "resource, url, is_in",
    [
        ("a.example", "https://a.example/x", True),
        ("a.example", "http://a.example/x", True),
        ("a.example", "https://a.example:8443/x", False),
        ("*.a.example", "https://b.a.example/", True),
        ("*.a.example", "https://a.example/", False),
        ("https://a.example", "https://a.example/any/path", True),
        ("https://a.example", "http://a.example/", False),
        ("https://a.example/v1/*", "https://a.example/v1/pay", True),
        ("https://a.example/v1/*", "https://a.example/v1/pay/1", False),
        ("https://a.example/v1/**", "https://a.example/v1/pay/1", True),
        ("https://a.example/v1/*", "https://a.example/v1/../admin", False),
        ("https://a.example/v1/**", "https://a.example/v1/%2e%2e/admin", False),
        ("https://a.example/v1/**", "https://a.example/v1/..%2fadmin", False),
        ("https://a.example/v1/**", "https://a.example/v1/a%5c..%5c..%5cadmin", False),
        ("https://a.example/v1/**", "https://a.example/v1//x", True),
        ("https://a.example/v1/pay", "https://A.EXAMPLE/v1/p%61y?x=1#y", True),
        ("https://a.example:8443/*", "https://a.example:8443/x", True),
        ("https://a.example/*", "https://a.example:8443/x", False),
        ("https://m\u00fcller.example/*", "https://xn--mller-kva.example/x", True),
        ("https://127.0.0.1:9000/*", "https://127.0.0.1:9000/x", True),
        ("*", "https://a.example/", True),
        ("*", "https://127.0.0.1/", False),
    ],
)
def test_a_url_is_matched_by_its_one_meaning(policy: Made, resource: str, url: str, is_in: bool) -> None:
    """Case, escapes, dot segments, ports and queries do not make another URL of it, nor hide one."""
    rules = policy(line("http", resource))
    assert rules.decide("r", get(url), NOW_US).is_allowed is is_in


def test_an_escaped_separator_does_not_hide_a_denied_path(policy: Made) -> None:
    """A path that some servers take for a denied one is denied."""
    text = line("http", "a.example") + line("http", "https://a.example/secret/**", more="effect = 'deny'")
    for path in ("secret%2fx", "open/..%2Fsecret%2Fx", "secret/x"):
        assert policy(text).decide("r", get(f"https://a.example/{path}"), NOW_US).code == "E330", path


@pytest.mark.parametrize(
    "kind, resource, target, is_in",
    [
        ("emit", "orders.*", "orders.eu", True),
        ("emit", "orders.*", "orders.eu.de", False),
        ("emit", "orders.>", "orders.eu.de", True),
        ("secret", "pay_*", "pay_key", True),
        ("secret", "pay_key", "pay_key2", False),
        ("stock", "\\*", "*", True),
        ("stock", "\\*", "IBM", False),
        ("state_data", "a*c", "abc", True),
        ("tool", "calc/*", "calc/add", True),
        ("infer", "gpt-*", "gpt-4o", True),
        ("infer", "gpt-*", "claude-3", False),
        ("file.read", "data:/in/*", "data:/in/a.csv", True),
        ("file.write", "data:/in/*", "data:/in/a/b.csv", False),
        ("file.list", "data:/in/**", "data:/in/a/b.csv", True),
        ("file.read", "data:/in/**", "data:/in/../secret/a.csv", False),
        ("file.read", "data:/in/**", "data:/in//a", True),
        ("file.read", "data:/in/**", "other:/in/a", False),
        ("file.read", "data:/in/\\*", "data:/in/*", True),
        ("file.read", "data:/in/\\*", "data:/in/a", False),
        ("read", "/etc/*", "/etc/config.json", True),
        ("delete", "**", "data:/a", True),
        ("alloc", "counter", "counter", True),
        ("read", "count*", "counter", True),
        ("control", "pause:*", "pause:enrich", True),
        ("control", "pause:*", "reset:enrich", False),
    ],
)
def test_other_kinds_are_matched_by_their_patterns(
    policy: Made, kind: str, resource: str, target: str, is_in: bool
) -> None:
    """Subjects as NATS matches them; paths without dot segments; names with a star for any text."""
    ask = asked(kind, target)
    assert policy(line(ask.kind, resource)).decide("r", ask, NOW_US).is_allowed is is_in


def test_control_is_asked_for_only_where_a_line_is_about_it(policy: Made) -> None:
    """A file without such a line leaves control requests as they were; with one, the rest is denied."""
    pause = asked("control", "pause:enrich")
    assert policy(line("stock", "*")).decide("enrich", pause, NOW_US).is_allowed
    assert not policy(line("control", "reset:*")).decide("enrich", pause, NOW_US).is_allowed


@pytest.mark.parametrize("path", ["a.csv", "data:a.csv", "data:/a\0b", ""])
def test_a_path_that_is_none_is_named(path: str) -> None:
    """Neither root:/path nor a real path, or with a NUL in it."""
    with pytest.raises(ValueError, match="a path is root:/path"):
        asked("file.read", path)


names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
paths = st.text(st.sampled_from("ab*?[]()+.\\%2fF/~ \u00e9"), max_size=12)
asks = st.one_of(
    st.builds(lambda name: Ask("secret", "use", name), names),
    st.builds(lambda name: Ask("state_data", "read", name), names),
    st.builds(lambda method, name: Ask("heap", method, name), st.sampled_from(KINDS["heap"].methods), names),
    st.builds(lambda name: asked("file.read", f"data:/{name}"), names),
    st.builds(
        lambda method, path: Ask("http", method, url_target(f"https://a.example/{path}")),
        st.sampled_from(KINDS["http"].methods),
        paths.filter(lambda path: "\\" not in path),
    ),
)


@given(asks, asks, st.from_regex(r"[a-z*?\[\]0-9-]{1,8}", fullmatch=True))
def test_a_pasted_suggestion_allows_exactly_what_was_asked(ask: Ask, other: Ask, route: str) -> None:
    """Nothing else of that route, and nothing of another."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.toml"
        file.write_text(suggest(route, ask), encoding="utf-8")
        rules = load([file])
    verdict = rules.decide(route, ask, NOW_US)
    if ask.kind != "http" or "%" not in ask.target:  # a path with an escaped separator has two readings
        assert verdict.is_allowed, verdict.remedy
    assert not rules.decide(f"{route}x", ask, NOW_US).is_allowed
    if other != ask:
        assert not rules.decide(route, other, NOW_US).is_allowed


@pytest.mark.parametrize(
    "text, place, says",
    [
        ("[[capability]]\nname = 'htp'\nresource = 'a'\nmethods = ['get']", "2:1",
         "there is no kind 'htp'; there are http, secret, emit, stock, state_data, tool, infer, file, heap, "
         "control. Did you mean 'http'?"),
        (line("http", "a.example", "['gett']"), "4:1",
         "http has no method 'gett'; it has get, head, options, post, put, patch, delete. Did you mean"),
        (line("http", "ftp://a"), "3:1", "resource 'ftp://a', a host as in"),
        (line("emit", "a..b"), "3:1", "resource 'a..b', a subject, or a pattern of subjects"),
        (line("stock", ""), "3:1", "it is empty"),
        (line("stock", "IBM", "[]"), "4:1", "methods is a list of texts with at least one"),
        ("[[capability]]\nname = 'stock'\nmethods = ['read']", "1:1", "resource is missing"),
        (line("stock", "I", more="  effekt = 'deny'"), "5:3",
         "there is no key 'effekt' in capability. Did you mean 'effect'?"),
        (line("stock", "I", more="effect = 'maybe'"), "5:1", "effect is 'allow' or 'deny', not 'maybe'"),
        (line("stock", "I", more="expires_minutes = 0"), "5:1",
         "expires_minutes is a whole number from 1 to 525600"),
        (line("stock", "I", more="expires_minutes = true"), "5:1", "expires_minutes is a whole number"),
        (line("stock", "I", more="expires_at = 2027-01-15T08:00:00"), "5:1",
         "expires_at is a time with its zone"),
        (line("stock", "I", more="effect = 'deny'\nexpires_minutes = 5"), "5:1", "a deny does not expire"),
        ("\n[settings]\nmode = 'off'", "3:1", "mode is 'enforce' or 'shadow', not 'off'"),
        ("[setings]\nmode = 'shadow'", "1:1", "there is no table 'setings'. Did you mean 'settings'?"),
        ("[capability]\nname = 'stock'", "1:1", "capability is a list of tables: write [[capability]]"),
        ("[[capability]]\nname = ", "2:1", "the policy is not TOML: Invalid value"),
        ("[[test]]\nroute = 'r'\nop = 'stock.sell'\ntarget = 'IBM'", "3:1", "stock has no method 'sell'"),
        ("[[test]]\nroute = 'r'\nop = 'stock'\ntarget = 'IBM'\nexpect = 'no'", "5:1",
         "expect is 'allow', 'deny' or 'expired'"),
    ],
)  # fmt: skip
def test_a_fault_has_its_place(policy: Made, text: str, place: str, says: str) -> None:
    """Line and column, the offending value, and the nearest word that there is."""
    with pytest.raises(Faults) as caught:
        policy(text)
    [fault] = caught.value.faults
    assert f"{fault.line}:{fault.column}" == place
    assert fault.code == "E111"
    assert says in fault.text


def test_all_faults_are_told_at_once(policy: Made) -> None:
    """Of every line of every file."""
    with pytest.raises(Faults) as caught:
        policy(line("stok", "a") + line("stock", "a", "['x']"), line("http", "ftp://x"))
    assert [(Path(fault.file).name, fault.line) for fault in caught.value.faults] == [
        ("policy.toml", 2), ("policy.toml", 9), ("2.toml", 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, says",
    [
        ("n = " + "[" * 5000, "policy.toml:"),
        (f"n = {'9' * 5000}", "digits"),
        ("n = '\x00'", "invalid character"),
    ],
)
def test_an_odd_file_is_a_fault(policy: Made, text: str, says: str) -> None:
    """Lists too deep in each other, numbers without end and control characters are faults like others."""
    with pytest.raises(Faults) as caught:
        policy(text)
    assert [fault.code for fault in caught.value.faults] == ["E111"]
    assert says in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the code of a missing file."""
    with pytest.raises(Faults, match=r"nothing\.toml:1:1 E107 the policy cannot be read"):
        load([tmp_path / "nothing.toml"])


def test_a_header_in_a_text_shifts_no_place(policy: Made) -> None:
    """Where lines cannot be told apart the place is the file alone, never a wrong line."""
    text = line("stock", "I", more="routes = ['''\n[[capability]]\n''']")
    verdict = policy(text + line("stock", "X", more="effect = 'deny'")).decide(
        "r", asked("stock", "X"), NOW_US
    )
    assert verdict.rule == "policy.toml"


def test_what_is_suggested_is_toml() -> None:
    """Quotes, backslashes and control characters of a target do not break out of the text."""
    ask = Ask("state_data", "read", 'a"\\\n\x7f]')
    [entry] = tomllib.loads(suggest("r", ask))["capability"]
    assert entry["resource"] == 'a"\\\\\n\x7f]'


@pytest.mark.parametrize(
    "op, says",
    [("htp.get", "Did you mean 'http'?"), ("http.gett", "Did you mean 'get'?"), ("", "there is no")],
)
def test_an_operation_that_is_none_is_named(op: str, says: str) -> None:
    """With the nearest that there is."""
    with pytest.raises(ValueError, match=r"there is no operation|has no method") as caught:
        asked(op, "https://a.example/")
    assert says in str(caught.value)


SHORT = """
[fs]
read = ["data:/in/**"]
write = [
  "data:/out/*",   # "not/this" [nor this]
  'tmp:/x]',
]
deny = ["data:/secret/**"]
[net]
allow = ["a.example", "https://b.example/v1/*"]
[tools]
allow = ["add"]
deny = ["calc/*"]
[infer]
models = ["gpt-*"]
max_tokens = 64
[budgets]
requests = 10
bytes = 1_000_000
"""


def test_short_tables_stand_for_lines_with_their_own_places(policy: Made) -> None:
    """Each item of a list is a line, where it stands; comments and other brackets are none of it."""
    [made] = policy(SHORT).policies
    assert [(rule.place, rule.kind, rule.resource, rule.is_deny) for rule in made.rules] == [
        ("policy.toml:3", "file", "data:/in/**", False),
        ("policy.toml:5", "file", "data:/out/*", False),
        ("policy.toml:6", "file", "tmp:/x]", False),
        ("policy.toml:8", "file", "data:/secret/**", True),
        ("policy.toml:10", "http", "a.example", False),
        ("policy.toml:10", "http", "https://b.example/v1/*", False),
        ("policy.toml:12", "tool", "add", False),
        ("policy.toml:13", "tool", "calc/*", True),
        ("policy.toml:15", "infer", "gpt-*", False),
    ]
    assert [(each.place, each.name, each.kind, each.limit, each.window) for each in made.budgets] == [
        ("policy.toml:18", "requests", "requests", 10, "run"),
        ("policy.toml:19", "bytes", "bytes", 1_000_000, "run"),
    ]


@pytest.mark.parametrize(
    "op, target, is_in",
    [
        ("file.read", "data:/in/a/b", True),
        ("file.list", "data:/in/a", True),
        ("file.write", "data:/in/a", False),
        ("file.delete", "data:/out/a", True),
        ("file.read", "data:/secret/a", False),
        ("http.delete", "https://a.example/x", True),
        ("http.get", "https://b.example/v2/x", False),
        ("tool", "add", True),
        ("tool", "calc/add", False),
        ("inference", "gpt-4o", True),
    ],
)
def test_short_tables_mean_what_their_lines_mean(policy: Made, op: str, target: str, is_in: bool) -> None:
    """Reading is reading and listing, writing is writing and deleting, and a host is asked in any way."""
    assert policy(SHORT).decide("r", asked(op, target), NOW_US).is_allowed is is_in


def test_the_text_of_a_line_is_the_line(policy: Made) -> None:
    """What `show` prints, in any form it was written, is read again as the same lines and budgets."""
    budget = "[[budget]]\nname = 'b'\nkind = 'compute'\nlimit = 5\nwindow = 'day'\nscope = 'route'\n"
    [made] = policy(SHORT + budget + "routes = ['a*']\nthen = 'warn'\n").policies
    [again] = policy("\n".join(line.text for line in (*made.rules, *made.budgets))).policies
    assert [rule.digest for rule in again.rules] == [rule.digest for rule in made.rules]
    assert [each.text for each in again.budgets] == [each.text for each in made.budgets]
    assert {each.name: each.then for each in again.budgets} == {
        "b": "warn", "requests": "deny", "bytes": "deny",
    }  # fmt: skip


def test_the_tokens_of_a_model_are_bounded_by_the_line_that_allows_most(policy: Made) -> None:
    """Of the lines that live; a line without a bound has none; of several files the lower bound counts."""
    chat = asked("infer", "gpt-4o")
    few = line("infer", "gpt-*", more="max_tokens = 10")
    more = line("infer", "gpt-4*", more="max_tokens = 20")
    assert policy(few + more).decide("r", chat, NOW_US).max_tokens == 20
    assert policy(few, more).decide("r", chat, NOW_US).max_tokens == 10
    assert policy(few + line("infer", "*")).decide("r", chat, NOW_US).max_tokens is None
    dead = line("infer", "*", more="expires_at = 2020-01-01T00:00:00Z")
    assert policy(few + dead).decide("r", chat, NOW_US).max_tokens == 10


def budget(**said: object) -> str:
    lines = {"name": "b", "kind": "requests", "limit": 100, "window": "day"} | said
    return "[[budget]]\n" + "".join(f"{key} = {value!r}\n" for key, value in lines.items() if value != "")


@pytest.mark.parametrize(
    "text, place, says",
    [
        (budget(kind="request"), "3:1",
         "there is no kind 'request' of budgets; there are requests, tool_calls, bytes, infer_calls, tokens, "
         "tokens_in, tokens_out, cost, file_bytes, compute, wall_time, outputs, output_bytes."
         " Did you mean 'requests'?"),
        (budget(kind="memory"), "3:1", "nothing counts memory in this release; what can be counted: "),
        (budget(window="week"), "5:1",
         "window is 'run', 'minute', 'hour', 'day', 'month' or 'life', not 'week'"),
        (budget(window=""), "1:1", "window is missing: it is 'run', 'minute'"),
        (budget(limit=0), "4:1", "limit is a whole number from 1 to 9007199254740992, not 0"),
        (budget(limit=1.5), "4:1", "limit is a whole number from 1 to 9007199254740992, not 1.5"),
        (budget(limit=""), "1:1", "limit is missing"),
        (budget(name="a.b"), "2:1", "a name is up to 63 letters, digits, '_' and '-', not 'a.b'"),
        (budget(name=""), "1:1", "name is missing"),
        (budget(then="stop"), "6:1", "then is 'deny', 'wait' or 'warn', not 'stop'"),
        (budget(scope="rout"), "6:1", "scope is 'shared' or 'route', not 'rout'. Did you mean 'route'?"),
        (budget(windw="day"), "6:1", "there is no key 'windw' in budget. Did you mean 'window'?"),
        (budget(kind="compute", then="deny"), "6:1", "compute is known when a run has ended, and no call"),
        (budget(kind="outputs", window="run"), "5:1", "outputs is known when a run has ended: a window"),
        (budget(window="run", then="wait"), "6:1", "a run does not wait for its own end"),
        (budget(window="run", scope="route"), "6:1", "a budget of a run is nobody else's"),
        (budget() + budget(kind="bytes"), "6:1", "there is a budget 'b' already, in policy.toml:1"),
        ("[budgets]\nrequests = 1\n" + budget(name="requests"), "3:1",
         "there is a budget 'requests' already, in policy.toml:2"),
        ("[budgets]\n memory = 5", "2:2", "nothing counts memory in this release"),
        ("[budgets]\nrequest = 5", "2:1", "there is no kind 'request' of budgets; there are "),
        ("[budgets]\nrequests = 'many'", "2:1", "requests is a whole number from 1 to"),
        ("[budgets]\ncompute = 5", "2:1", "compute is known when a run has ended: write a [[budget]]"),
        ("[net]\nalow = ['a']", "2:1", "there is no key 'alow' in net. Did you mean 'allow'?"),
        ("[net]\nallow = 'a'", "2:1", "allow is a list of texts"),
        ("[net]\nallow = [\n  'a.example',\n  'ftp://b']", "4:3", "resource 'ftp://b', a host as in"),
        ("[fs]\nread = ['a.csv']", "2:9", "resource 'a.csv', root:/path"),
        ("[fs]\nread = ['data:/a/../b']", "2:9", "without dot segments"),
        ("[infer]\nmax_tokens = 5", "2:1", "max_tokens bounds the models, and there are none"),
        ("[infer]\nmodels = ['a']\nmax_tokens = -1", "3:1", "max_tokens is a whole number"),
        (line("stock", "I", more="max_tokens = 5"), "5:1", "max_tokens is for lines that allow models"),
        ("[[net]]\nallow = ['a']", "1:1", "net is a table: write [net]"),
        ("settings = 5", "1:1", "settings is a table: write [settings]"),
        ("[budget]\nname = 'b'", "1:1", "budget is a list of tables: write [[budget]]"),
        ("[[capability]]\nresource = 'a'\nmethods = ['get']", "1:1", "name is missing"),
    ],
)  # fmt: skip
def test_a_fault_of_short_tables_and_budgets_has_its_place(
    policy: Made, text: str, place: str, says: str
) -> None:
    """Line and column, the offending value, and the nearest word that there is; one fault, and no more."""
    with pytest.raises(Faults) as caught:
        policy(text)
    [fault] = caught.value.faults
    assert f"{fault.line}:{fault.column}" == place, fault
    assert fault.code == "E111"
    assert says in fault.text


def test_two_files_have_one_budget_of_a_name(policy: Made, tmp_path: Path) -> None:
    """A name is an account of the app: two files cannot mean two accounts by it."""
    with pytest.raises(Faults, match=r"2\.toml:1:1 E111 there is a budget 'b' already, in policy\.toml:1"):
        policy(budget(), budget())


def test_what_is_odd_about_a_line_is_told(policy: Made) -> None:
    """Lines that can never matter, patterns of everything, ends in the past, and names that are not there."""
    text = (
        line("http", "https://a.example/v1/*", "['get']")  # 1: held by 11
        + line("http", "https://a.example/secret/x", "['get']")  # 6: denied by 16
        + line("http", "a.example", "['get', 'post']")  # 11
        + line("http", "https://a.example/secret/**", more="effect = 'deny'")  # 16
        + line("secret", "pay_kye", "['use']")  # 21
        + line("emit", "orders.*", "['publish']", "routes = ['enrch']")  # 26
        + line("emit", "orders.*", "['publish']", "expires_at = 2020-01-01T00:00:00Z")  # 31
        + line("heap", "*", "['read']")  # 36
        + line("infer", "tiny", "['chat']")  # 41
        + line("state_data", "x", "['read']")  # 46
        + line("state_data", "x", "['read']")  # 51: the same again
        + budget(routes=["enrch"])  # 56
    )
    found = list(lints(policy(text), ["enrich"], ["pay_key"], NOW_US))
    assert [(place.removeprefix("policy.toml:"), says) for place, says in found] == [
        ("26", "routes: no route is named 'enrch'. Did you mean 'enrich'?"),
        ("56", "routes: no route is named 'enrch'. Did you mean 'enrich'?"),
        ("21", "there is no secret 'pay_kye'. Did you mean 'pay_key'?"),
        ("31", "it has expired, so it allows nothing"),
        ("36", "resource: '*' allows every one; name those that are needed"),
        ("1", "it can never matter: policy.toml:11 allows all of it"),
        ("6", "it can never matter: policy.toml:16 denies all of it"),
        ("51", "it can never matter: policy.toml:46 allows all of it"),
    ]


def test_a_deny_of_another_file_makes_a_line_useless_unless_it_only_watches(policy: Made) -> None:
    """A deny anywhere wins, but one in shadow mode denies nothing."""
    allow, deny = line("stock", "IBM", "['read']"), line("stock", "*", more="effect = 'deny'")
    [(place, says)] = lints(policy(allow, deny), ["r"], [], NOW_US)
    assert (place, says) == ("policy.toml:1", "it can never matter: 2.toml:1 denies all of it")
    assert not list(lints(policy(allow, "[settings]\nmode = 'shadow'\n" + deny), ["r"], [], NOW_US))


@pytest.mark.parametrize(
    "kind, wide, narrow, is_held",
    [
        ("stock", "a*", "ab*", True),
        ("stock", "ab*", "a*", False),
        ("stock", "a*b", "a*xb", True),
        ("stock", "a\\*", "a*", False),
        ("emit", "a.>", "a.*.b", True),
        ("emit", "a.*", "a.>", False),
        ("file", "d:/a/**", "d:/a/*", True),
        ("file", "d:/a/*", "d:/a/**", False),
        ("file", "d:/a/*/*", "d:/a/**", False),
        ("http", "*.a.example", "b.a.example", True),
        ("http", "a.example", "https://a.example/x", True),
        ("http", "https://a.example", "a.example", False),
        ("http", "a.example", "a.example:8443", False),
        ("http", "10.0.0.0/8", "10.1.0.0/16", True),
        ("http", "10.1.0.0/16", "10.0.0.0/8", False),
        ("http", "*", "*.a.example", True),
        ("http", "https://a.example/*/x", "https://a.example/y/x", True),
    ],
)
def test_one_pattern_holds_another(policy: Made, kind: str, wide: str, narrow: str, is_held: bool) -> None:
    """Where everything that one matches is matched by the other, the narrower line can never matter."""
    method = f"['{KINDS[kind].methods[0]}']"
    found = list(lints(policy(line(kind, narrow, method) + line(kind, wide, method)), ["r"], [], NOW_US))
    assert (("policy.toml:1", "it can never matter: policy.toml:6 allows all of it") in found) is is_held


@pytest.mark.parametrize(
    "window, name, ends",
    [
        ("minute", "2027-01-15T08:00", "2027-01-15T08:01:00"),
        ("hour", "2027-01-15T08", "2027-01-15T09:00:00"),
        ("day", "2027-01-15", "2027-01-16T00:00:00"),
        ("month", "2027-01", "2027-02-01T00:00:00"),
        ("life", "life", None),
        ("run", "run", None),
    ],
)
def test_a_window_is_that_of_utc(window: Window, name: str, ends: str | None) -> None:
    """Its name and its end, whatever the zone of the machine."""
    found, ends_us = window_at(window, NOW_US)
    assert found == name
    assert ends_us == (None if ends is None else datetime.fromisoformat(f"{ends}+00:00").timestamp() * 1e6)
    if ends_us is not None:
        later, _ = window_at(window, ends_us)
        assert later > name
        assert window_at(window, ends_us - 1)[0] == name
