"""The audit's keys: what is audited by default, and what is wrong with a combination of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.config import Config, load
from processor.errors import Faults
from processor.notes import new_private_key, private_pem

APP = "app: market\n{top}\nroutes:\n  r: {{input: a, code: 'class Runnable: pass'{route}}}\n"


def read(folder: Path, top: str = "", route: str = "", *, needs_secrets: bool = True) -> Config:
    (folder / "app.yaml").write_text(APP.format(top=top, route=route))
    (folder / "policy.toml").write_text("")
    return load(folder / "app.yaml", {}, needs_secrets=needs_secrets)


@pytest.mark.parametrize(
    ("top", "route", "level"),
    [
        ("", "", "off"),
        ("policy: policy.toml", "", "calls"),
        ("", ", policy: policy.toml", "calls"),
        ("policy: policy.toml\naudit: {level: off}", "", "off"),
        ("audit: {level: runs}", "", "runs"),
    ],
)
def test_a_policy_brings_the_audit(tmp_path: Path, top: str, route: str, level: str) -> None:
    """Without a word calls are audited where some policy is, and nothing without one."""
    assert read(tmp_path, top, route).audit_level == level


@pytest.mark.parametrize(
    ("audit", "what"),
    [
        ("{keep: 30d}", "E106 audit.keep has no effect: there is no policy, and audit.level is not set"),
        ("{level: off, origin: a}", "E106 audit.origin has no effect: its level is off"),
        ("{level: off, seal: {entries: 5}}", "E106 audit.seal has no effect: its level is off"),
        ("{level: runs, stream: external, keep: 3d}", "E106 audit.keep has no effect: the stream is made by"),
        ("{level: runs, key_file: none.pem}", "E107 audit.key_file is {here}/none.pem, which does not exist"),
        (
            "{level: runs, key_file: app.yaml}",
            "E107 audit.key_file is {here}/app.yaml: the key is not the private key of Ed25519 in PEM; "
            "`processor audit keygen` makes one",
        ),
        ("{level: runs, origin: a b}", "E104 audit.origin is 'a b': 'a b' is no name of a log"),
        ("{level: some}", "E104 audit.level is 'some'"),
        ("{level: runs, seal: {seconds: 0}}", "E104 audit.seal.seconds is 0"),
        ("{level: runs, copy_ttl: 1s}", "E104 audit.copy_ttl is 1.0: it must be at least 3600.0"),
        ("{level: runs, kep: 1d}", "E103 audit.kep is not a key; did you mean `keep`?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_keys_of_the_audit(tmp_path: Path, audit: str, what: str) -> None:
    """Each fault is at its key, with a code and what would do."""
    with pytest.raises(Faults) as caught:
        read(tmp_path, f"audit: {audit}")
    [fault] = caught.value.faults
    assert f"{fault.code} {fault.text}".startswith(what.replace("{here}", str(tmp_path)))


def test_the_key_is_needed_only_where_seals_are_signed(tmp_path: Path) -> None:
    """A command that only looks on needs no private key; with one, the origin names the app."""
    top = "audit: {level: runs, key_file: audit.pem, origin: audit.example.com}"
    assert read(tmp_path, top, needs_secrets=False).audit_origin == "audit.example.com/market"
    (tmp_path / "audit.pem").write_bytes(private_pem(new_private_key()))
    assert read(tmp_path, top).audit.key_file == str(tmp_path / "audit.pem")
