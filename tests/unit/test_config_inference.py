"""The keys of models: what they come to, and what is said about the wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from processor.config import Config, load
from processor.errors import Faults
from processor.reach import InferenceEndpoint

BASE = """\
app: market
routes:
  ask:
    input: asks.*
    code: "class Runnable: pass"
    inference: %s
"""
KEYS = {"KEY": "12345678"}


def read(folder: Path, listed: str, text: str, env: Mapping[str, str] = KEYS) -> Config:
    (folder / "app.yaml").write_text(BASE % listed + text)
    (folder / "lib.py").write_text("class Ask(BaseNode):\n    pass\n")
    return load(folder / "app.yaml", env)


def test_a_route_has_the_endpoints_that_it_lists_in_its_order(tmp_path: Path) -> None:
    """With defaults, and with the secret; so has a group of nodes, which is a pool then."""
    text = """\
inference:
  local: {base_url: 'http://127.0.0.1:8080/v1/', models: tiny-*}
  far: {base_url: 'https://api.example.com/v1', models: [gpt-4o, o1], secret: key, timeout_s: 90, idle_s: 5,
        max_tokens: 100, price: [2, 0.5]}
  other: {base_url: 'http://x/v1', models: '*'}
secrets: {key: {env: KEY, hosts: [api.example.com]}}
nodes:
  lib: {file: lib.py, inference: local}
"""
    config = read(tmp_path, "[far, local, far]", text)
    far, local = config.routes["ask"].reach.inference
    assert local == InferenceEndpoint(
        "local", "http://127.0.0.1:8080/v1", ("tiny-*",), None, 60, 20, 1024, None
    )
    assert (far.name, far.models, far.timeout_s, far.idle_s) == ("far", ("gpt-4o", "o1"), 90, 5)
    assert (far.max_tokens, far.price) == (100, (2, 0.5))
    assert far.secret is not None
    assert far.secret.value == "12345678"
    assert "12345678" not in repr(far)
    assert {name: far.serves(name) for name in ("gpt-4o", "gpt-4", "o1")} == {
        "gpt-4o": True,
        "gpt-4": False,
        "o1": True,
    }
    assert config.groups["lib"].reach.inference == (local,)
    assert config.groups["lib"].is_pool
    assert [*config.inference] == ["local", "far", "other"]


WRONG = {
    "{models: a}": "E105 inference.local.base_url is missing",
    "{base_url: 'http://x/v1'}": "E105 inference.local.models is missing",
    "{base_url: 'http://x/v1', models: []}": "E104 inference.local.models",
    "{base_url: 'http://x/v1?a=1', models: a}": "it must have no query",
    "{base_url: 'ftp://x/v1', models: a}": "E104 inference.local.base_url",
    "{base_url: 'http://x/v1', models: a, price: [1]}": "E105 inference.local.price.1 is missing",
    "{base_url: 'http://x/v1', models: a, price: [1, -1]}": "E104 inference.local.price",
    "{base_url: 'http://x/v1', models: a, max_tokens: 0}": "E104 inference.local.max_tokens is 0",
    "{base_url: 'http://x/v1', models: a, key: b}": "E103 inference.local.key is not a key",
    "{base_url: 'http://x/v1', models: a, secret: key}": "secret is key, which is not bound to http://x",
    "{base_url: 'http://x/v1', models: a, secret: lock}": "secret names 'lock', which is not a secret",
}


@pytest.mark.parametrize("keys", WRONG)
def test_a_key_that_cannot_be_meant_is_a_fault(tmp_path: Path, keys: str) -> None:
    """At its place, with what to write."""
    text = f"inference: {{local: {keys}}}\nsecrets: {{key: {{env: KEY, hosts: [other.example]}}}}\n"
    with pytest.raises(Faults) as found:
        read(tmp_path, "[local]", text)
    [fault] = found.value.faults
    assert fault.line == 7
    assert WRONG[keys] in f"{fault.code} {fault.text}"


def test_a_route_can_list_only_endpoints_that_there_are(tmp_path: Path) -> None:
    """Each other name is a fault with those that there are."""
    with pytest.raises(Faults) as found:
        read(tmp_path, "[locl]", "inference: {local: {base_url: 'http://x/v1', models: a}}\n")
    [fault] = found.value.faults
    assert (fault.line, fault.code) == (6, "E106")
    assert fault.text == "routes.ask.inference names 'locl', which is no endpoint of `inference`: local"
