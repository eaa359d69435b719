"""The configuration: what a file may say, what is said about a faulty one, and what is made from the keys."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from textwrap import dedent
from typing import Any

import jsonschema
import nkeys
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from processor.config import (
    ENVIRONMENT,
    Config,
    effective_yaml,
    forms,
    full_yaml,
    guarantee,
    json_schema,
    load,
    misspelled_inputs,
)
from processor.config import ism as ism_keys
from processor.config import keys as config_keys
from processor.errors import ConfigError, Fault, Faults
from processor.model import Limits
from processor.route import KeySource, Route

CONFIGS = Path(__file__).parent.parent.parent / "configs"
MINIMAL = """
app: market
routes:
  stats:
    input: ticks.*
    code: "class Runnable: pass"
"""
ROUTING = """
messageConfig:
  routes:
    - selector: "code/executor/python/python-executor-1.0"
      name: "processor_executor_python"
      queue: "processor_executor_python_queue"
      subject: "processor.executor.python"
      url: nats://broker:4222
      ack_wait: 90
      concurrent_enabled: true
    - selector: "processor/state"
      name: "s"
      jetstream_enabled: false
      subject: "processor.state.{state_id}"
      url: "nats://broker:4222"
    - {selector: "processor/monitor", name: "m", subject: "processor.monitor", url: "nats://broker:4222"}
    - {selector: "processor/usage", name: "u", subject: "processor.usage", url: "nats://broker:4222"}
    - {selector: "processor/state/sync", name: "y", subject: "processor.state.sync", url: "nats://broker:4222"}
    - {selector: "processor/state/router", name: "r", subject: "processor.state.router", url: "nats://broker:4222"}
"""


def read(tmp_path: Path, text: str, env: Mapping[str, str] | None = None) -> Config:
    file = tmp_path / "app.yaml"
    file.write_text(dedent(text))
    return load(file, env or {})


def faults_of(tmp_path: Path, text: str, env: Mapping[str, str] | None = None) -> list[Fault]:
    with pytest.raises(Faults) as caught:
        read(tmp_path, text, env)
    return caught.value.faults


def route_faults(tmp_path: Path, **keys: Any) -> list[Fault]:
    """The faults of a route that is fine but for `keys` (None takes a key away)."""
    route = {"input": "ticks.*", "code": "class Runnable: pass", **keys}
    route = {key: value for key, value in route.items() if value is not None}
    return faults_of(tmp_path, yaml.safe_dump({"app": "market", "routes": {"stats": route}}))


def stats(config: Config) -> Route:
    return config.routes["stats"]


EMITS: list[tuple[dict[str, Any], str, str]] = [
    ({"emits": ["*.x"]}, "E104", "starts with a wildcard"),
    ({"emits": [">"]}, "E104", "starts with a wildcard"),
    ({"emits": ["a..b"]}, "E104", "empty token"),
    ({"emits": ["a.>.b"]}, "E104", "before its end"),
    ({"emits": ["$JS.API.x"]}, "E104", "belongs to the NATS server"),
    ({"emits": [5]}, "E104", "must be text"),
    ({"emits": "p.market.*.x"}, "E106", "which the app itself publishes to"),
    ({"emits": ["live.market.>"]}, "E106", "overlaps live.market.>, which the app itself publishes to"),
    ({"emits": ["ctl.*.members"]}, "E106", "overlaps ctl.market.>, which the app itself publishes to"),
    ({"emits": ["a.*", "a.b"]}, "E106", "overlaps emits 'a.*'"),
    ({"emits": ["a", "a"]}, "E106", "listed twice"),
    ({"emits": ["a.*"], "output": "a.b"}, "E106", "overlaps output 'a.b'"),
    ({"emits": ["a.>"], "events": "a.b"}, "E106", "overlaps events 'a.b'"),
    (
        {"emits": ["a"], "output": {"subject": "a", "durable": False}},
        "E106",
        "no copies with `durable: false`",
    ),
    ({"emits": ["a"], "output": "a", "mode": "stream"}, "E106", "no copies with `mode: stream`"),
]


@pytest.mark.parametrize(("keys", "code", "text"), EMITS, ids=[text for _, _, text in EMITS])
def test_subjects_to_emit_to_are_refused_where_no_stream_could_keep_them(
    tmp_path: Path, keys: dict[str, Any], code: str, text: str
) -> None:
    """Each is a subject or a pattern with a stream of its own, or that of the outputs."""
    [fault] = route_faults(tmp_path, **keys)
    assert fault.code == code
    assert "emits" in fault.text
    assert text in fault.text
    assert fault.line > 1


def test_subjects_to_emit_to_may_be_those_of_outputs_and_inputs(tmp_path: Path) -> None:
    """One stream takes both; one text is a list of one. Live outputs of another route have no stream."""
    text = MINIMAL + "    output: a.{key}\n    key: subject.2\n    emits: [a.*, ticks.x]\n"
    route = stats(read(tmp_path, text))
    assert route.emits == ("a.*", "ticks.x")
    promised = [said.partition(":")[0] for said in guarantee(route) if "exactly once, as durable" in said]
    assert promised == ["Emits to a.*", "Emits to ticks.x"]
    other = '  other: {input: i, code: "class Runnable: pass", output: {subject: x.y, durable: false}}\n'
    [fault] = faults_of(tmp_path, f"{MINIMAL}    emits: x.*\n{other}")
    assert (fault.code, "routes.other.output 'x.y', which no stream keeps" in fault.text) == ("E106", True)
    for key in ("emits: [x.y, z]", "output: x.y", "events: x.y"):
        other = f'  other: {{input: i, code: "class Runnable: pass", {key}}}\n'
        assert stats(read(tmp_path, f"{MINIMAL}    emits: [x.y, z]\n{other}"))
        found = faults_of(tmp_path, f"{MINIMAL}    emits: x.*\n{other}")
        assert any(f"overlaps routes.other.{key.partition(':')[0]} 'x.y'" in fault.text for fault in found)
        assert all("make it one pattern" in fault.text for fault in found)


# What a file may say


def test_the_smallest_configuration_is_an_app_and_a_route(tmp_path: Path) -> None:
    """Everything else has a default."""
    config = read(tmp_path, MINIMAL)
    route = stats(config)
    assert (config.app, config.path, list(config.routes)) == ("market", tmp_path / "app.yaml", ["stats"])
    assert config.nats.url == ("nats://127.0.0.1:4222",)
    assert (route.name, route.app, route.mode, str(route.key), route.partitions) == (
        "stats",
        "market",
        "batch",
        "none",
        1,
    )
    assert (route.output_template, route.events_subject) == (None, None)
    assert route.input.subjects == ("ticks.*",)
    assert route.limits == Limits()
    assert config.http is not None
    assert (config.http.host, config.http.port) == ("127.0.0.1", 9464)


def test_a_short_form_means_the_same_as_its_mapping(tmp_path: Path) -> None:
    """A text in place of a mapping is the mapping's first key."""
    short = read(tmp_path, MINIMAL + "    output: stats\n    events: events.stats\nnats: embedded\n")
    long = read(
        tmp_path,
        """
        app: market
        nats: {url: embedded}
        routes:
          stats:
            input: {subject: ticks.*}
            code: "class Runnable: pass"
            output: {subject: stats}
            events: {subject: events.stats}
        """,
    )
    assert short == long
    assert short.nats.embedded


def test_sizes_and_times_are_written_with_units(tmp_path: Path) -> None:
    """Sizes are bytes and times are seconds once loaded."""
    config = read(
        tmp_path,
        MINIMAL
        + """
    batch: {max_bytes: 512KiB}
    limits: {output_bytes: 1MB, context_bytes: 4096}
    output: {subject: stats, ttl: 90m, max_age: 0}
""",
    )
    route = stats(config)
    assert route.batch.max_bytes == 512 * 1024
    assert (route.limits.output_bytes, route.limits.context_bytes) == (1_000_000, 4096)
    assert route.output is not None
    assert (route.output.ttl_s, route.output.limits.max_age_s) == (5400.0, 0.0)


@given(st.integers(min_value=1, max_value=1 << 40), st.integers(min_value=1, max_value=1 << 40))
def test_a_printed_size_or_time_reads_back_as_itself(size: int, time_ms: int) -> None:
    """`effective_yaml` can be given to `load` again."""
    assert forms._read_size(forms.show_size(size)) == size
    read_back = forms._read_time(forms.show_time(time_ms / 1000))
    assert read_back == pytest.approx(time_ms / 1000)


@pytest.mark.parametrize(
    ("written", "kind", "number", "name"),
    [
        ("none", "none", 0, ""),
        ("subject.2", "subject", 2, ""),
        ("header.Symbol", "header", 0, "Symbol"),
        ("json./a/b~1c", "json", 0, "/a/b~1c"),
    ],
)
def test_a_key_comes_from_the_subject_a_header_or_the_document(
    tmp_path: Path, written: str, kind: Any, number: int, name: str
) -> None:
    """Keyed routes have 64 partitions unless they say otherwise."""
    route = stats(read(tmp_path, MINIMAL + f"    key: {written}\n"))
    assert route.key == KeySource(kind, number, name)
    assert str(route.key) == written
    assert route.partitions == (1 if written == "none" else 64)


def test_a_program_is_read_when_the_configuration_is(tmp_path: Path) -> None:
    """A later change of the file is seen by the next load, not by a running service."""
    (tmp_path / "stats.py").write_text("class Runnable: pass")
    text = MINIMAL.replace('code: "class Runnable: pass"', "runnable: stats.py")
    before = read(tmp_path, text)
    (tmp_path / "stats.py").write_text("class Runnable:\n    x = 1")
    after = read(tmp_path, text)
    assert stats(before).program.source == "class Runnable: pass"
    assert stats(before).program.filename == str(tmp_path / "stats.py")
    assert stats(before) != stats(after)
    assert after.files == (tmp_path / "app.yaml", tmp_path / "stats.py")


def test_line_numbers_of_inline_code_are_those_of_the_configuration_file(tmp_path: Path) -> None:
    """What a Runnable's traceback names can be found in the file that holds it."""
    config = read(
        tmp_path,
        """\
        app: market
        routes:
          stats:
            input: ticks.*
            code: |
              class Runnable:
                  here = 1
        """,
    )
    program = stats(config).program
    assert program.filename == str(tmp_path / "app.yaml")
    assert program.source.splitlines()[6] == "    here = 1"
    assert (tmp_path / "app.yaml").read_text().splitlines()[6].strip() == "here = 1"


def test_a_route_takes_the_stock_keys_that_it_lacks_from_the_top(tmp_path: Path) -> None:
    """Each key by itself: a route may change the server and keep the app's API key."""
    text = MINIMAL + "    stock: {base_url: 'http://localhost:1'}\nstock: {api_key_env: OUR_KEY}\n"
    config = read(tmp_path, text)
    assert (stats(config).reach.stock.base_url, stats(config).reach.stock.api_key_env) == (
        "http://localhost:1",
        "OUR_KEY",
    )


def test_every_key_of_retry_and_limits_reaches_what_it_is_for(tmp_path: Path) -> None:
    """None of them is left at its default on the way from the file to the worker and the guest."""
    limits = {each.name: 1 + index for index, each in enumerate(fields(Limits))} | {"memory_mb": 16}
    retry = {
        "attempts": 7,
        "strategy": "linear_equal_jitter",
        "base_ms": 11,
        "factor": 3,
        "max_ms": 500,
        "then": "drop",
    }
    route = stats(read(tmp_path, MINIMAL + f"    limits: {limits}\n    retry: {retry}\n"))
    assert asdict(route.limits) == limits
    assert asdict(route.retry) == retry


@pytest.mark.parametrize("off", ["off", "false"])
def test_http_can_be_switched_off(tmp_path: Path, off: str) -> None:
    """`off` is a word here, and the boolean that older YAML takes it for."""
    assert read(tmp_path, MINIMAL + f"http: {off}\n").http is None


def test_paths_are_relative_to_the_configuration_file(tmp_path: Path) -> None:
    """Where the command is started does not matter."""
    (tmp_path / "ca.pem").touch()
    config = read(tmp_path, MINIMAL + "nats: {tls: {ca: ca.pem}, store_dir: data}\n")
    assert config.nats.tls is not None
    assert config.nats.tls.ca == str(tmp_path / "ca.pem")
    assert config.nats.store_dir == str(tmp_path / "data")


def test_a_loaded_configuration_cannot_be_changed(tmp_path: Path) -> None:
    """A reload makes a new one."""
    with pytest.raises(ValueError, match="frozen"):
        read(tmp_path, MINIMAL).app = "other"  # type: ignore[misc]


# Secrets


def test_login_in_a_url_is_taken_out_of_it(tmp_path: Path) -> None:
    """The URL can be printed; user and password are handed to the connection."""
    config = read(tmp_path, MINIMAL + "nats: 'nats://us%40er:s3cret@one, two:4223'\n")
    assert config.nats.url == ("nats://one", "nats://two:4223")
    assert (config.nats.credentials.user, config.nats.credentials.password) == ("us@er", "s3cret")


def test_secrets_are_read_from_files_when_a_connection_needs_them(tmp_path: Path) -> None:
    """A rotated secret is used without a new configuration; a missing one is named."""
    secret = tmp_path / "password"
    secret.write_text("first\n")
    config = read(tmp_path, MINIMAL + "nats: {user: me, password_file: password}\n")
    assert config.nats.credentials.password == "first"
    secret.write_text("second")
    assert config.nats.credentials.password == "second"
    secret.unlink()
    with pytest.raises(ConfigError, match="E107 a secret cannot be read"):
        _ = config.nats.credentials


CANARY = "c4n4ry"
SEED = bytes(nkeys.encode_seed(b"seed" * 8, nkeys.PREFIX_BYTE_USER)).decode()
CREDENTIALS = f"""\
-----BEGIN NATS USER JWT-----
eyJ0eXAi.eyJq-_dGki.AQID
------END NATS USER JWT------

************************* IMPORTANT *************************
-----BEGIN USER NKEY SEED-----
{SEED}
------END USER NKEY SEED------
"""


@pytest.mark.parametrize(
    "nats",
    [
        f"{{user: me, password: {CANARY}}}",
        f"{{token: {CANARY}}}",
        f"{{nkey_seed: {SEED}}}",
        f"nats://me:{CANARY}@host",
        f"nats://{CANARY}@host",
    ],
)
def test_a_secret_is_never_shown(tmp_path: Path, nats: str) -> None:
    """Neither in a repr nor in the effective configuration; both say that there is one."""
    config = read(tmp_path, MINIMAL + f"nats: {nats}\n")
    shown = effective_yaml(config) + repr(config) + repr(config.nats.credentials)
    assert CANARY not in shown
    assert SEED not in shown
    assert "'***'" in shown


@pytest.mark.parametrize(
    "nats",
    [
        f"{{password: {CANARY}}}",
        f"{{password: [{CANARY}]}}",
        f"{{user: me, password: {CANARY}, token: {CANARY}}}",
        f"{{user: me, password: {CANARY}, password: {CANARY}x}}",
        f"{{user: 5, password: {CANARY}, relpicas: 3}}",
        f"{{url: 'http://me:{CANARY}@host'}}",
        f"{{url: ['nats://me:{CANARY}@host', 'nats://you:{CANARY}@host']}}",
        f"{{url: 'nats://me:{CANARY}@host:port'}}",
        f"{{url: 'nats://me:{CANARY}@[host'}}",
        f"{{url: ['nats://me:{CANARY}@host', 5]}}",
        f"{{url: {{a: 'nats://me:{CANARY}@host'}}}}",
        f"{{nkey_seed: {CANARY}}}",
    ],
)
def test_a_fault_never_shows_a_secret(tmp_path: Path, nats: str) -> None:
    """Faults go to logs and screens."""
    for fault in faults_of(tmp_path, MINIMAL + f"nats: {nats}\n"):
        assert CANARY not in str(fault)


# Faults


def test_every_fault_is_found_in_one_pass_with_its_place(tmp_path: Path) -> None:
    """One run of `check` is enough to know all that is wrong."""
    faults = faults_of(
        tmp_path,
        """\
        app: mar ket
        ntas: x
        nats: {url: "http://x", replicas: 9}
        routes:
          stats:
            input: ticks. x
            runable: a.py
            limits: {memory_mb: 8, output_bytes: 3 foo, cpu_s: "x", wall_s: .nan}
          sound:
            input: a.*
            output: a.b.{key}
            runnable: nope.py
          "b d": {input: x, code: x}
          5: {}
        drain_s:
        """,
    )
    found = [(fault.line, fault.column, fault.code) for fault in faults]
    assert found == [
        (1, 1, "E104"),
        (2, 1, "E103"),
        (3, 8, "E104"),
        (3, 25, "E104"),
        (6, 5, "E104"),
        (7, 5, "E103"),
        (8, 14, "E104"),
        (8, 28, "E104"),
        (8, 49, "E104"),
        (8, 61, "E104"),
        (11, 5, "E106"),
        (12, 5, "E107"),
        (13, 3, "E104"),
        (14, 3, "E104"),
        (15, 1, "E104"),
    ]
    assert {fault.file for fault in faults} == {str(tmp_path / "app.yaml")}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("rertry: {}", "routes.stats.rertry is not a key; did you mean `retry`?"),
        ("zzz: 1", "routes.stats.zzz is not a key; keys here are input, runnable, code, mode,"),
        ("calls: {durable: true}", "routes.stats.calls.durable is not a key; keys here are replay."),
        ("calls: durable", "routes.stats.calls is 'durable': it must be a mapping."),
        ("limits: {memory: 1}", "routes.stats.limits.memory is not a key; did you mean `memory_mb`?"),
        ("memmory_mb: 64", "routes.stats.memmory_mb is not a key; did you mean `limits.memory_mb`?"),
        (
            "limits: {memory_mb: 8}",
            "limits.memory_mb is 8: it must be at least 16. Remove it to use the default, 128.",
        ),
        (
            "limits: {output_bytes: 8 apples}",
            "it must be a number of bytes, or a number with KiB, MiB or GiB",
        ),
        ("limits: {output_bytes: -1}", "it must be at least 1. Remove it to use the default, 8MiB."),
        ("limits: {cpu_s: true}", "limits.cpu_s is True: it must be a number"),
        ("limits: {cpu_s: .inf}", "it must be a finite number"),
        ("limits: [1]", "routes.stats.limits: it must be a mapping"),
        ("retry: {attempts: '3'}", "retry.attempts is '3': it must be a whole number"),
        ("retry: {attempts: 0}", "it must be at least 1"),
        ("mode: btach", "mode is 'btach': it must be 'batch' or 'stream'"),
        ("key: subject", "key is 'subject': it must be none, subject.N, header.NAME or json./pointer"),
        ("output: {subject: a, ttl: 5}", "it must be a time with its unit, such as 30s, 24h or 7d"),
        ("output: {subject: a, ttl: 100ms}", "it must be at least 1"),
        ("output: {ttl: 5s}", "routes.stats.output.subject is missing. Subject with placeholders"),
        ("output: '{key}'", "its first token must be fixed"),
        ("events: e.*", "wildcard"),
        ("events: e.{key}", "it must be one subject, without placeholders"),
        ("stock: {base_url: ftp://x}", "it must match ^https?://"),
        ("events: !secret x", "the tag !secret has no meaning here"),
        ("key:", "key is empty: it must be text; quote it"),
        (f"key: {'x' * 500}", "xxx...: it must be"),
    ],
)
def test_a_fault_names_the_key_the_value_and_what_would_be_right(
    tmp_path: Path, written: str, said: str
) -> None:
    """One line, with the value bounded."""
    faults = faults_of(tmp_path, MINIMAL + f"    {written}\n")
    assert said in str(faults[0])
    assert (faults[0].file, faults[0].line) == (str(tmp_path / "app.yaml"), 7)
    assert all(len(str(fault)) < 400 + len(str(tmp_path)) for fault in faults)


@pytest.mark.parametrize(
    ("text", "code", "line", "said"),
    [
        ("app: [1\nroutes: {}", "E102", 2, "is not YAML"),
        ("app: a\napp: b", "E102", 2, "the key 'app' is given twice"),
        ("- a", "E102", 1, "must be a mapping"),
        ("app: \x00", "E102", 1, "characters that YAML does not allow"),
        ("app: " + "[" * 60, "E102", 1, "is not YAML"),
        ("app: " + "[" * 60 + "]" * 60, "E102", 1, "app.0.0.0... is nested too deeply"),
        ("app: " + "[" * 1500 + "]" * 1500, "E102", 1, "nested too deeply"),
        ("app: a\n---\napp: b", "E102", 2, "is not YAML"),
        ("", "E105", 1, "app is missing. Name of the app"),
        ("app: a\nroutes: {}", "E104", 2, "routes: it must not be empty"),
        ("app: a\nroutes:\n  r: {}", "E105", 3, "routes.r.input is missing"),
    ],
)
def test_what_is_no_configuration_at_all_is_said_at_its_line(
    tmp_path: Path, text: str, code: str, line: int, said: str
) -> None:
    """From an empty file to one that is not YAML."""
    faults = faults_of(tmp_path, text)
    assert [(fault.code, fault.line) for fault in faults if said in fault.text] == [(code, line)]


def test_a_file_that_cannot_be_read_is_e101(tmp_path: Path) -> None:
    """The reason is the operating system's."""
    with pytest.raises(Faults, match="E101 cannot be read: No such file"):
        load(tmp_path / "none.yaml", {})
    (tmp_path / "latin.yaml").write_bytes(b"app: caf\xe9")
    with pytest.raises(Faults, match="E102 is not UTF-8"):
        load(tmp_path / "latin.yaml", {})


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"code": None}, "E105", "runnable is missing"),
        ({"runnable": "x.py"}, "E106", "runnable and code are both given"),
        ({"code": None, "runnable": "x.py"}, "E107", "x.py, which cannot be read: No such file"),
        ({"input": {"create": True}}, "E105", "input.subject is missing"),
        ({"partitions": 2}, "E106", "partitions has no effect while `key` is none"),
        ({"concurrency": 2}, "E106", "concurrency is 2 while `key` is none: one context"),
        ({"key": "subject.2", "partitions": 4, "concurrency": 5}, "E106", "spread over 4 partitions"),
        ({"concurrency": 65}, "E104", "concurrency"),
        ({"key": "subject.3"}, "E106", "the subjects of 'ticks.*' have 2 tokens"),
        ({"output": "out.{subject.3}"}, "E106", "{subject.3}, but the subjects of 'ticks.*' have 2 tokens"),
        ({"output": "out.{key}"}, "E106", "{key} ('out.{key}') while `key` is none"),
        ({"output": "out.{session}"}, "E106", "which only `mode: stream` has"),
        ({"output": "out.{name}", "mode": "stream"}, "E106", "must be known before there is a chunk"),
        ({"output": "ticks.{symbol}"}, "E106", "would read what it writes"),
        ({"events": "ticks.events"}, "E106", "would read what it writes"),
        ({"output": "p.market.out"}, "E106", "which the app itself publishes to"),
        ({"events": "live.market.x"}, "E106", "which the app itself publishes to"),
        ({"output": {"subject": "o", "durable": False, "max_age": "1h"}}, "E106", "there is no stream"),
        ({"output": {"subject": "o", "ttl": "1h"}, "mode": "stream"}, "E106", "output.ttl has no effect"),
        ({"batch": {"max_messages": 5}, "mode": "stream"}, "E106", "batch has no effect in `mode: stream`"),
        ({"input": {"subject": "a", "codec": "raw"}, "key": "json./a"}, "E106", "are not JSON"),
        ({"cloudevents": {"type": "x"}}, "E106", "cloudevents has no effect with `codec: json`"),
        ({"ism": {"routing_file": "r.yaml"}}, "E106", "ism has no effect with `codec: json`"),
        ({"input": {"codec": "ism"}}, "E105", "ism is missing"),
        ({"input": {"subject": "a", "repartition": True}}, "E106", "there is one partition"),
        (
            {"input": {"subject": "a", "document": {}}},
            "E106",
            "document has no effect without input.schedule",
        ),
        ({"input": {"subject": "a", "catch_up": False}}, "E106", "catch_up has no effect without"),
        ({"input": {"subject": "a", "time_zone": "UTC"}}, "E106", "time_zone has no effect without"),
        ({"input": {"schedule": "@hourly", "subject": "a"}}, "E106", "subject has no effect beside"),
        ({"input": {"schedule": "@hourly", "create": True}}, "E106", "create has no effect beside"),
        ({"input": {"schedule": "@hourly", "start": "new"}}, "E106", "start has no effect beside"),
        ({"input": {"schedule": "@hourly", "repartition": True}}, "E106", "repartition has no effect beside"),
        ({"input": {"schedule": "@hourly", "codec": "raw"}}, "E106", "a schedule sends is a JSON document"),
        ({"input": {"schedule": "@every 5s", "time_zone": "UTC"}}, "E106", "it has no time of day"),
        ({"input": {"schedule": "@at 2026-12-01T08:00:00Z", "catch_up": False}}, "E106", "due once"),
        ({"input": {"schedule": "@hourly"}, "key": "subject.1"}, "E106", "use json./pointer"),
        ({"input": {"schedule": "@hourly"}, "output": "o.{subject.1}"}, "E106", "no subject of its own"),
        ({"input": {"schedule": "*/5 * * * *"}}, "E104", "put `0` in front of it"),
        ({"input": {"schedule": "@hourly", "document": {"a": 1 << 70}}}, "E104", "cannot be written as JSON"),
        ({"input": {"schedule": "@every 10ms"}}, "E104", "the shortest period is 1 s"),
        ({"input": {"schedule": "0 0 8 31 2 *"}}, "E104", "is never due"),
        ({"input": {"schedule": "0 0 8 * * *", "time_zone": "Moon"}}, "E104", "'Moon' is no time zone"),
        ({"packages": ["numpy"]}, "E106", "packages has no effect with `language: restricted`"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(
    tmp_path: Path, keys: dict[str, Any], code: str, said: str
) -> None:
    """No key is accepted without effect."""
    faults = route_faults(tmp_path, **keys)
    assert [fault.code for fault in faults if said in fault.text] == [code]


@pytest.mark.parametrize(
    ("nats", "code", "said"),
    [
        ("{user: a, token: b}", "E106", "one way to log in"),
        ("{password: b}", "E105", "nats.user is missing"),
        ("{user: a, password: b, password_file: c}", "E106", "both given"),
        ("{tls: {cert: c.pem}}", "E106", "need each other"),
        ("{url: embedded, replicas: 3}", "E106", "the embedded server is alone"),
        ("{url: embedded, user: a}", "E106", "needs no login"),
        ("{url: [embedded, 'nats://x']}", "E106", "together with other servers"),
        ("{creds_file: none.creds}", "E107", "none.creds, which does not exist"),
        ("{url: []}", "E104", "nats.url: it must not be empty"),
        ("{url: 'nats://a@x', token: b}", "E104", "both in `url` and as its own key"),
    ],
)
def test_contradictions_about_the_server_are_refused(tmp_path: Path, nats: str, code: str, said: str) -> None:
    """A connection that cannot be made as written is not tried."""
    faults = faults_of(tmp_path, MINIMAL + f"nats: {nats}\n")
    assert code in [fault.code for fault in faults if said in fault.text]


OTHER_SEED = bytes(nkeys.encode_seed(b"seed" * 8, nkeys.PREFIX_BYTE_ACCOUNT)).decode()


@pytest.mark.parametrize(
    "seed", ["foo", "SU", SEED[:-1], SEED[:-2] + "AA", SEED.lower(), OTHER_SEED, "ü" * 58]
)
def test_what_is_no_nkey_seed_of_a_user_is_refused_at_its_place(tmp_path: Path, seed: str) -> None:
    """As a value and in a file: nobody could log in with it, and it is not shown."""
    (tmp_path / "seed.nk").write_text(seed + "\n")
    (tmp_path / "user.creds").write_text(CREDENTIALS.replace(SEED, seed))
    for key, value, code in (
        ("nkey_seed", seed, "E104"),
        ("nkey_seed_file", "seed.nk", "E107"),
        ("creds_file", "user.creds", "E107"),
    ):
        [fault] = faults_of(tmp_path, MINIMAL + f"nats:\n  {key}: {value}\n")
        assert (fault.line, fault.column, fault.code) == (MINIMAL.count("\n") + 2, 3, code)
        assert f"nats.{key} is " in fault.text
        assert "seed" in fault.text
        assert seed == "SU" or seed not in str(fault)


@pytest.mark.parametrize(
    "content",
    [
        "",
        SEED,
        CREDENTIALS.replace("NATS USER JWT", "JWT"),
        CREDENTIALS.replace("USER NKEY SEED", "SEED"),
        CREDENTIALS.replace("\n", "\r\n"),
        CREDENTIALS.partition("\n------END USER")[0],
        CREDENTIALS.replace("eyJ0eXAi", "\n"),
    ],
)
def test_a_file_that_holds_no_credentials_is_refused(tmp_path: Path, content: str) -> None:
    """E107 where it is named, before anything is connected, and nothing of it is shown."""
    (tmp_path / "user.creds").write_bytes(content.encode())
    [fault] = faults_of(tmp_path, MINIMAL + "nats: {creds_file: user.creds}\n")
    assert fault.code == "E107"
    assert "user.creds, which is no credentials file" in fault.text
    assert SEED not in str(fault)


@pytest.mark.parametrize("key", ["nkey_seed_file", "creds_file"])
def test_a_folder_is_no_file_with_a_login(tmp_path: Path, key: str) -> None:
    """What cannot be read is said as the machine says it."""
    [fault] = faults_of(tmp_path, MINIMAL + f"nats: {{{key}: .}}\n")
    assert (fault.code, fault.text.rpartition(", ")[2]) == ("E107", "which cannot be read: Is a directory")


def test_routes_that_share_a_subject_agree_about_its_stream(tmp_path: Path) -> None:
    """One subject cannot be kept for two different times."""
    faults = faults_of(
        tmp_path,
        """\
        app: market
        routes:
          one: {input: a.*, code: x, output: {subject: "out.{subject.2}", max_age: 1h}}
          two: {input: b.*, code: x, output: "out.{name}"}
        """,
    )
    assert [(fault.line, fault.code) for fault in faults] == [(4, "E106")]
    assert "routes.two.output and routes.one.output share 'out.*'" in faults[0].text


# Environment


def test_every_variable_replaces_its_key(tmp_path: Path) -> None:
    """The table is the whole list, and every entry in it works."""
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    (tmp_path / "creds").write_text(CREDENTIALS)
    values = {
        "NATS_URL": "tls://a:1,tls://b:2",
        "NATS_USER": "me",
        "NATS_PASSWORD": "secret",
        "NATS_TOKEN": "token",
        "NATS_NKEY_SEED": SEED,
        "NATS_CREDS": str(tmp_path / "creds"),
        "NATS_CA": str(tmp_path / "ca"),
        "NATS_CERT": str(tmp_path / "cert"),
        "NATS_KEY": str(tmp_path / "key"),
        "PROCESSOR_LOG_LEVEL": "debug",
        "PROCESSOR_LOG_FORMAT": "json",
        "PROCESSOR_HTTP_HOST": "0.0.0.0",
        "PROCESSOR_HTTP_PORT": "0",
        "PROCESSOR_DRAIN_S": "2.5",
    }
    assert set(values) == set(ENVIRONMENT)
    needs = {"NATS_PASSWORD": ["NATS_USER"], "NATS_CERT": ["NATS_KEY"], "NATS_KEY": ["NATS_CERT"]}
    for name, value in values.items():
        env = {name: value} | {other: values[other] for other in needs.get(name, [])}
        config = read(tmp_path, MINIMAL, env)
        found: Any = config
        for key in ENVIRONMENT[name][0]:
            found = getattr(found, str(key))
        found = found.get_secret_value() if hasattr(found, "get_secret_value") else found
        assert found == {"NATS_URL": ("tls://a:1", "tls://b:2"), "PROCESSOR_HTTP_PORT": 0}.get(
            name, 2.5 if name == "PROCESSOR_DRAIN_S" else value
        )
        assert f"from {name}" in effective_yaml(config)


@pytest.mark.parametrize("nats", ["embedded", "{user: a, password: b}", "nats://a:b@host", "{token: t}"])
def test_a_login_from_the_environment_replaces_every_login_of_the_file(tmp_path: Path, nats: str) -> None:
    """Two ways to log in would contradict each other."""
    env = {"NATS_URL": "nats://c:d@other", "NATS_CREDS": ""}
    config = read(tmp_path, MINIMAL + f"nats: {nats}\n", env)
    assert config.nats.url == ("nats://other",)
    assert (config.nats.credentials.user, config.nats.credentials.password) == ("c", "d")
    assert read(tmp_path, MINIMAL + f"nats: {nats}\n", {"NATS_TOKEN": "x", "NATS_URL": "h"}).nats.token


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (
            {"PROCESSOR_HTTP_PORT": "abc"},
            "$PROCESSOR_HTTP_PORT:1:1 E108 http.port is 'abc': it must be a whole number",
        ),
        ({"PROCESSOR_HTTP_PORT": "70000"}, "E108 http.port is 70000: it must be at most 65535"),
        ({"PROCESSOR_DRAIN_S": "soon"}, "$PROCESSOR_DRAIN_S:1:1 E108"),
        ({"PROCESSOR_LOG_LEVEL": "loud"}, "$PROCESSOR_LOG_LEVEL:1:1 E108 logs.level is 'loud'"),
        ({"NATS_URL": "http://x"}, "$NATS_URL:1:1 E108"),
        ({"NATS_CREDS": "none.creds"}, "$NATS_CREDS:1:1 E108"),
        (
            {"NATS_CREDS": os.devnull},
            "$NATS_CREDS:1:1 E108 nats.creds_file is /dev/null, which is no credent",
        ),
        ({"NATS_NKEY_SEED": "foo"}, "$NATS_NKEY_SEED:1:1 E108 nats.nkey_seed is no nkey seed of a user: SU"),
        ({"NATS_USER": "a", "NATS_TOKEN": "b"}, "E108 nats has user and token"),
    ],
)
def test_a_fault_of_the_environment_names_the_variable(
    tmp_path: Path, env: dict[str, str], said: str
) -> None:
    """The file is not blamed for what it does not say."""
    assert said in str(faults_of(tmp_path, MINIMAL, env)[0])


# ISM


def ism_config(
    keys: str = "", ism: str = "outputs: [{route_id: 's_out:p1', next: ['s_out:p2']}]", nats: str = ""
) -> str:
    return f"""
app: market
{nats}
routes:
  stats:
    input: {{codec: ism}}
    code: "class Runnable: pass"
    ism: {{routing_file: .routing.yaml, {ism}}}
    {keys}
"""


def test_a_routing_file_of_the_ism_system_is_read_unchanged(tmp_path: Path) -> None:
    """Selectors become the route's subjects, and its server ours where the configuration names none."""
    (tmp_path / ".routing.yaml").write_text(ROUTING)
    config = read(tmp_path, ism_config())
    route = stats(config)
    assert route.ism is not None
    routing = route.ism.routing
    assert route.input.subjects == ("processor.executor.python",)
    assert routing.input.name == "processor_executor_python"
    assert routing.monitor.subject == "processor.monitor"
    assert routing.usage.subject == "processor.usage"
    assert routing.sync.subject == "processor.state.sync"
    assert routing.router.subject == "processor.state.router"
    assert (routing.state.subject, routing.state.jetstream) == ("processor.state.{state_id}", False)
    assert config.nats.url == ("nats://broker:4222",)
    assert config.files == (tmp_path / "app.yaml", tmp_path / ".routing.yaml")
    assert read(tmp_path, ism_config(nats="nats: nats://ours")).nats.url == ("nats://ours",)


def test_priorities_and_wildcard_selectors_of_a_routing_file_count(tmp_path: Path) -> None:
    """A priority queue is read as a whole, and `prefix/*` stands for every selector below it."""
    text = ROUTING.replace("concurrent_enabled", "concurrent_priority_enabled").replace(
        "code/executor/python/python-executor-1.0", "code/executor/*"
    )
    (tmp_path / ".routing.yaml").write_text(text)
    assert stats(read(tmp_path, ism_config())).input.subjects == (
        "processor.executor.python",
        "processor.executor.python.>",
    )


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        (
            'selector: "processor/monitor"',
            'selector: "x"',
            "E105",
            "no entry of messageConfig.routes has the selector",
        ),
        ("messageConfig:", "other:", "E105", "messageConfig.routes is missing"),
        (
            'subject: "processor.usage"',
            "subject: 5",
            "E104",
            "messageConfig.routes.3.subject is 5: it must be text",
        ),
        ('subject: "processor.usage"', "subject: 'a b'", "E104", "subject of 'processor/usage'"),
        ("ack_wait: 90", "jetstream_enabled: false", "E106", "a route reads from a stream"),
        ("url: nats://broker:4222", "url: nats://another:4222", "E106", "different servers"),
    ],
)
def test_a_fault_in_a_routing_file_is_placed_there(
    tmp_path: Path, old: str, new: str, code: str, said: str
) -> None:
    """The routing file is named, not the configuration."""
    assert old in ROUTING
    (tmp_path / ".routing.yaml").write_text(ROUTING.replace(old, new, 1))
    (fault,) = faults_of(tmp_path, ism_config())
    assert (fault.file, fault.code) == (str(tmp_path / ".routing.yaml"), code)
    assert said in fault.text


def test_a_missing_routing_file_is_e107(tmp_path: Path) -> None:
    """It is named with its path."""
    (fault,) = faults_of(tmp_path, ism_config())
    assert (fault.file, fault.code) == (str(tmp_path / ".routing.yaml"), "E107")


@pytest.mark.parametrize(
    ("keys", "ism", "said"),
    [
        ("key: subject.2", "outputs: []", "an ISM processor has one context"),
        ("output: x", "outputs: []", "output has no effect with `codec: ism`"),
        ("", "outputs: [{route_id: 'a:b', sync: false}]", "ism.outputs.0 sends nothing"),
        ("", "outputs: [ab]", "it must match"),
        ("mode: stream", "outputs: []", "ism.outputs has 0 states"),
        ("mode: stream", "outputs: [{route_id: 'a:b', sync: true}]", "next and sync have no effect"),
        ("mode: stream", "outputs: ['a.*:b']", "subject of 'processor/state'"),
    ],
)
def test_contradictions_of_an_ism_route_are_refused(tmp_path: Path, keys: str, ism: str, said: str) -> None:
    """Its subjects and its one context come from the ISM system."""
    (tmp_path / ".routing.yaml").write_text(ROUTING)
    assert any(said in fault.text for fault in faults_of(tmp_path, ism_config(keys, ism)))


# What is said about a configuration


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("output: o", "Outputs to o: exactly once and in order"),
        ("output: {subject: o, durable: false}", "Outputs to o: at most once (`durable: false`)"),
        ("output: 'o.{session}'\n    mode: stream", "Chunks to o.{session}: live, at most once"),
        ("mode: stream", "Chunks: none are sent"),
        ("mode: batch", "Outputs: none are sent"),
        ("key: subject.2", "Order: per key (subject.2), 64 partitions."),
        ("key: subject.2\n    concurrency: 4", "Concurrency: 4 keys at a time, each in a guest of its own"),
        ("events: e", "Events to e:"),
        ("retry: {attempts: 7}", "A message that fails 7 times becomes a dead letter"),
        ("retry: {attempts: 1}", "A message that fails once becomes a dead letter"),
    ],
)
def test_the_guarantee_follows_the_keys(tmp_path: Path, keys: str, said: str) -> None:
    """`check` says what each route really promises, and why."""
    promises = guarantee(stats(read(tmp_path, MINIMAL + f"    {keys}\n")))
    assert any(promise.startswith(said) for promise in promises)
    assert any("atomic commit" in promise for promise in promises)
    assert any("at least once" in promise for promise in promises)


def test_the_guarantee_of_an_ism_route_names_its_subjects(tmp_path: Path) -> None:
    """Outputs go to two queues of the ISM system, and status events are terminal once."""
    (tmp_path / ".routing.yaml").write_text(ROUTING)
    said = " ".join(guarantee(stats(read(tmp_path, ism_config()))))
    assert "processor.state.router, processor.state.sync" in said
    assert "exactly one COMPLETED or FAILED" in said
    chunks = ism_config("mode: stream", "outputs: ['s_out:p1']")
    assert "Chunks to processor.state.s_out[.session]" in " ".join(guarantee(stats(read(tmp_path, chunks))))


def test_the_effective_configuration_is_a_configuration(tmp_path: Path) -> None:
    """It loads again and means the same."""
    text = MINIMAL + "    key: subject.2\n    output: stats.{key}\n    events: e\nhttp: off\n"
    config = read(tmp_path, text)
    again = read(tmp_path, effective_yaml(config))
    assert again.model_dump() == config.model_dump()


# What is generated


def models() -> list[type[BaseModel]]:
    return [
        model
        for model in (vars(config_keys) | vars(ism_keys)).values()
        if isinstance(model, type)
        and issubclass(model, config_keys.Settings)
        and model is not config_keys.Settings
    ]


def test_every_key_says_what_it_means() -> None:
    """A description ends as a sentence, and a key without a default has an example or is a mapping."""
    for model in models():
        for name, info in model.model_fields.items():
            place = f"{model.__name__}.{name}"
            assert info.description, place
            assert info.description.endswith("."), place
            if info.is_required() or info.default is None:
                assert info.examples or config_keys.inner_model(info.annotation), place


def test_the_full_example_is_generated_and_loads(tmp_path: Path) -> None:
    """It names every key, and what it shows as defaults are the defaults."""
    text = full_yaml()
    assert (CONFIGS / "full.yaml").read_text() == text
    for model in models():
        for name, info in model.model_fields.items():
            assert re.search(rf"^[ #-]*{config_keys.alias_of(name, info)}:", text, re.MULTILINE), name
    (tmp_path / "runnables").mkdir()
    (tmp_path / "runnables/stats.py").write_text("class Runnable: pass")
    config = read(tmp_path, text)
    plain = read(tmp_path, MINIMAL.replace("    code", "    key: subject.2\n    code"))
    assert config.nats == plain.nats
    example, default = config.routes["example"], stats(plain)
    for name in ("mode", "partitions", "batch", "retry", "limits"):
        assert getattr(example, name) == getattr(default, name)
    assert example.reach.stock == default.reach.stock
    assert (config.http, config.logs, config.drain_s) == (plain.http, plain.logs, plain.drain_s)


def test_the_commented_examples_are_valid_too() -> None:
    """Every example in a key's description is accepted for that key."""
    for model in models():
        for name, info in model.model_fields.items():
            key = config_keys.alias_of(name, info)
            for example in info.examples or ():
                try:
                    model.model_validate({key: example})
                except ValidationError as err:
                    # Other keys may be missing beside it; the key itself must have nothing against it.
                    places = [error["loc"] for error in err.errors() if error["type"] != "missing"]
                    assert not [place for place in places if place[:1] == (key,)], (model, name, example)


def test_the_schema_is_generated_and_accepts_what_load_accepts() -> None:
    """Editors agree with us about keys, short forms and units."""
    schema = json_schema()
    assert json.loads((CONFIGS / "schema.json").read_text()) == schema
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    for text in (
        full_yaml(),
        MINIMAL,
        MINIMAL + "nats: embedded\nhttp: off\n",
        MINIMAL + "    outbound: a.example\n    secrets: k\nsecrets: {k: {env: K, hosts: a.example}}\n",
        MINIMAL + "outbound: {allowed_domains: a.example}\n",
        (CONFIGS / "quickstart.yaml").read_text(),
    ):
        assert not list(check.iter_errors(yaml.safe_load(text))), text
    for text in (
        MINIMAL + "ntas: x",
        MINIMAL + "    mode: x",
        MINIMAL + "    batch: {max_bytes: 4 apples}",
        "app: x",
    ):
        assert list(check.iter_errors(yaml.safe_load(text))), text


def test_a_route_may_name_its_class(tmp_path: Path) -> None:
    """`file.py:Name` is the class Name of that file, and another program than its Runnable; else a path."""
    (tmp_path / "two.py").write_text("class Runnable: ...\nclass Other: ...\n")
    (tmp_path / "odd:name").write_text("class Runnable: ...\n")
    path = tmp_path / "config.yaml"
    named = ["two.py", "two.py:Runnable", "two.py:Other", "odd:name"]
    path.write_text(
        yaml.dump(
            {
                "app": "a",
                "routes": {f"r{n}": {"input": "in", "runnable": name} for n, name in enumerate(named)},
            }
        )
    )
    config = load(path, {})
    programs = [route.program for route in config.routes.values()]
    assert [program.class_name for program in programs] == ["Runnable", "Runnable", "Other", "Runnable"]
    assert [Path(program.filename).name for program in programs] == ["two.py", "two.py", "two.py", "odd:name"]
    assert programs[0] == programs[1]
    assert len({program.id for program in programs}) == 3
    assert config.files == (path, tmp_path / "two.py", tmp_path / "odd:name")


def pipeline(tmp_path: Path, *routes: tuple[str, str], dev: str = "") -> list[str]:
    """What is said of these routes, each an input and an output."""
    text = "app: app\nroutes:\n"
    for number, (subject, output) in enumerate(routes):
        text += f'  r{number}: {{input: "{subject}", code: "class Runnable: ...", output: "{output}"}}\n'
    (tmp_path / "c.yaml").write_text(text + dev)
    (tmp_path / "feed.jsonl").write_text("{}\n")
    return [str(fault) for fault in misspelled_inputs(load(tmp_path / "c.yaml", {}))]


def test_an_input_that_is_nearly_what_another_route_writes_is_told(tmp_path: Path) -> None:
    """A slip in one token, where nobody writes the one nor reads the other; not names that are others."""
    assert pipeline(tmp_path, ("in.*", "parsed.x"), ("prased.*", "out")) == [
        f"{tmp_path}/c.yaml:4:8 E106 no route writes to the input prased.*, and none reads parsed.x, which "
        "route r0 writes: is that meant?"
    ]
    for routes in (
        (("in.*", "parsed.x"), ("parsed.*", "out")),
        (("orders.raw", "orders.clean"),),
        (("orders.in", "orders.out"),),
        (("stats1.*", "x.y"), ("in", "stats2.a")),
        (("in.*", "parsed.x"), ("prased.*", "out"), ("parsed.>", "end")),
    ):
        assert pipeline(tmp_path, *routes) == [], routes
    fed = "dev: {feed: feed.jsonl, subject: prased.x}\n"
    assert pipeline(tmp_path, ("in.*", "parsed.x"), ("prased.*", "out"), dev=fed) == []
