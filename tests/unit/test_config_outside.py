"""The keys about the outside: hosts, secrets and services, and what is said about the wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from processor.config import Config, effective_yaml, load, reachable
from processor.errors import Faults

CANARY = "K3Y-canary-1"
BASE = """\
app: market
routes:
  stats:
    input: ticks.*
    code: "class Runnable: pass"
"""


def read(folder: Path, text: str, env: Mapping[str, str] = {}) -> Config:
    (folder / "app.yaml").write_text(BASE + text)
    return load(folder / "app.yaml", env)


def faults(folder: Path, text: str, env: Mapping[str, str] = {}) -> list[str]:
    with pytest.raises(Faults) as found:
        read(folder, text, env)
    return [f"{f.line}:{f.column} {f.code} {f.text}" for f in found.value.faults]


def test_nothing_is_reachable_by_default(tmp_path: Path) -> None:
    """A route without `outbound` reaches no host, and `check` says so."""
    route = read(tmp_path, "").routes["stats"]
    assert route.reach.outbound.allowed_domains == ()
    assert route.reach.secrets == ()
    assert reachable(route) == ["Outside: nothing (`outbound.allowed_domains` is empty)."]


def test_a_route_takes_the_keys_that_it_lacks_from_the_top(tmp_path: Path) -> None:
    """`outbound` and `state_api` are inherited key by key; a list of hosts is the short form."""
    text = """\
    outbound: [api.example.com]
    state_api: {base_url: 'http://localhost:1/'}
outbound: {allowed_domains: ['*'], timeout_s: 2.5, response_bytes: 1KiB, redirects: 0}
state_api: {base_url: 'https://states.example/v', secret: k}
secrets: {k: {env: KEY, hosts: ['http://localhost:1', states.example]}}
"""
    reach = read(tmp_path, text, {"KEY": CANARY}).routes["stats"].reach
    assert reach.place == "routes.stats.outbound.allowed_domains"
    assert reach.outbound.allowed_domains == ("api.example.com",)
    assert (reach.outbound.timeout_s, reach.outbound.response_bytes, reach.outbound.redirects) == (
        2.5,
        1024,
        0,
    )
    assert reach.state_api.base_url == "http://localhost:1"
    assert reach.state_key is not None
    assert reach.state_key.value == CANARY
    assert reach.secrets == ()  # it is the host's to send, and none of the Runnable's


@pytest.mark.parametrize(
    "entry", ["*.", "a*", "http://a.example", "127.1", "10.0.0.1/8", "a b", "[::1", "fe80::1%eth0"]
)
def test_an_entry_that_could_not_match_does_not_load(tmp_path: Path, entry: str) -> None:
    """A wrong entry is a fault at its place, and not a host that is silently out of reach."""
    [fault] = faults(tmp_path, f"    outbound: {{allowed_domains: [a.example, '{entry}']}}\n")
    assert fault.startswith("6:45 E104 routes.stats.outbound.allowed_domains.1 is ")


def test_secrets_come_from_the_environment_and_from_files(tmp_path: Path) -> None:
    """Their values are read when the configuration is loaded, without the white space around them."""
    (tmp_path / "key").write_text("from a file\n")
    text = """\
    secrets: [two, one]
secrets:
  one: {env: ONE, hosts: [a.example, '*.b.example:8443']}
  two: {file: key, hosts: http://c.example}
"""
    config = read(tmp_path, text, {"ONE": " from the environment "})
    route = config.routes["stats"]
    assert [(s.name, s.value) for s in route.reach.secrets] == [
        ("two", "from a file"),
        ("one", "from the environment"),
    ]
    assert reachable(route)[1:] == [
        "Secret two: for http://c.example.",
        "Secret one: for a.example, *.b.example:8443.",
    ]
    assert tmp_path / "key" in config.files


@pytest.mark.parametrize(
    "text, fault",
    [
        ("secrets: {k: {env: NONE, hosts: [a.b]}}", "6:15 E108 secrets.k.env is NONE, which is not set"),
        ("secrets: {k: {file: none, hosts: [a.b]}}", "6:15 E107 secrets.k.file is "),
        ("secrets: {k: {hosts: [a.b]}}", "6:11 E106 secrets.k has neither env and file"),
        ("secrets: {k: {env: A, file: b, hosts: [a.b]}}", "6:11 E106 secrets.k has both env and file"),
        ("secrets: {k: {env: SHORT, hosts: [a.b]}}", "6:11 E108 secrets.k has fewer than 8 characters"),
        ("secrets: {k: {env: LINES, hosts: [a.b]}}", "6:11 E108 secrets.k holds a line break"),
        ("secrets: {k: {env: KEY}}", "6:11 E105 secrets.k.hosts is missing."),
        ("secrets: {k: {env: KEY, hosts: []}}", "6:25 E104 secrets.k.hosts: "),
        ("secrets: {k: {env: KEY, hosts: ['*']}}", "6:33 E104 secrets.k.hosts.0: a secret is bound to hosts"),
        ("secrets: {'a b': {env: KEY, hosts: [a.b]}}", "6:11 E104 the name 'a b' cannot be used"),
        ("    secrets: [none]", "6:5 E106 routes.stats.secrets names 'none', which is not a secret"),
        ("state_api: {secret: none}", "6:13 E106 state_api.secret names 'none', which is not a secret"),
        (
            "state_api: {secret: k}\nsecrets: {k: {env: KEY, hosts: [a.b]}}",
            "6:13 E106 state_api.secret is k, which is not bound to https://api.ism.quantumwake.io",
        ),
        ("state_api: {base_url: 'http://127.1/'}", "6:13 E104 state_api.base_url"),
        ("state_api: {base_url: 'http://a.example/?'}", "6:13 E104 state_api.base_url"),
        ("state_api: {base_url: 'http://a.example/#v'}", "6:13 E104 state_api.base_url"),
        ("outbound: {timeout_s: 0}", "6:12 E104 outbound.timeout_s"),
        ("outbound: {request_bytes: 5MiB}", "6:12 E104 outbound.request_bytes"),
        ("outbound: {proxy: x}", "6:12 E103 outbound.proxy is not a key"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(tmp_path: Path, text: str, fault: str) -> None:
    """Each fault has its line, column and code."""
    env = {"KEY": CANARY, "SHORT": "1234567", "LINES": "first\nsecond"}
    found = faults(tmp_path, f"{text}\n", env)
    assert [line for line in found if line.startswith(fault)], found


def test_no_value_is_printed(tmp_path: Path) -> None:
    """Neither a repr, the effective configuration nor a fault shows one, even one in the wrong place."""
    text = "    secrets: [k]\nsecrets: {k: {env: KEY, hosts: [a.example]}}\n"
    config = read(tmp_path, text, {"KEY": CANARY})
    route = config.routes["stats"]
    assert CANARY in route.reach.secrets[0].value
    assert (
        CANARY not in f"{config!r} {route!r} {route.reach!r} {effective_yaml(config)} {config.model_dump()}"
    )
    for wrong in (
        f"{{k: {CANARY}}}",
        f"{{k: {{env: {CANARY}, hosts: [a.b]}}}}",
        f"{{k: {{value: {CANARY}}}}}",
    ):
        assert CANARY not in " ".join(faults(tmp_path, f"secrets: {wrong}\n"))


def test_a_changed_secret_is_a_changed_route(tmp_path: Path) -> None:
    """A reload starts the routes anew whose secrets changed, and no others."""
    text = "    secrets: [k]\n  other: {input: a, code: 'class Runnable: pass'}\n"
    text += "secrets: {k: {env: KEY, hosts: [a.example]}}\n"
    values = ("first one", "first one", "second one")
    before, same, after = (read(tmp_path, text, {"KEY": value}) for value in values)
    assert before.routes == same.routes
    assert before.routes["stats"] != after.routes["stats"]
    assert before.routes["other"] == after.routes["other"]
