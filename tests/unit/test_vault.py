"""Secrets of graphs, as they are kept and as they travel to a worker."""

from __future__ import annotations

import base64

import orjson
import pytest

from processor.graphs.vault import Recipient, Sealed, SecretVault, key_bytes, new_key, seal_to

VALUE = "sk-live-4711"


def test_a_secret_opens_where_it_was_sealed_for() -> None:
    """It comes back as it was, and what is kept of it does not show it; two of one value differ."""
    vault = SecretVault(new_key())
    kept = vault.seal("shop", "pay", "api_key", VALUE)
    assert vault.open("shop", "pay", "api_key", kept) == VALUE
    assert VALUE.encode() not in kept
    assert base64.b64encode(VALUE.encode()) not in kept
    assert kept != vault.seal("shop", "pay", "api_key", VALUE)


@pytest.mark.parametrize(
    "place", [("other", "pay", "api_key"), ("shop", "x", "api_key"), ("shop", "pay", "x")]
)
def test_a_secret_that_was_moved_does_not_open(place: tuple[str, str, str]) -> None:
    """It is bound to its app, its graph and its name."""
    vault = SecretVault(new_key())
    kept = vault.seal("shop", "pay", "api_key", VALUE)
    with pytest.raises(Sealed, match="sealed with another key"):
        vault.open(*place, kept)


def test_what_cannot_be_opened_says_why_and_shows_nothing() -> None:
    """Another key, a changed byte and something else altogether are told apart from a secret."""
    vault = SecretVault(new_key())
    kept = vault.seal("shop", "pay", "api_key", VALUE)
    with pytest.raises(Sealed, match="'api_key' of graph 'pay' was sealed with another key"):
        SecretVault(new_key()).open("shop", "pay", "api_key", kept)
    body = orjson.loads(kept)
    box = bytearray(base64.b64decode(body["box"]))
    box[0] ^= 1
    changed = orjson.dumps({**body, "box": base64.b64encode(box).decode()})
    with pytest.raises(Sealed) as caught:
        vault.open("shop", "pay", "api_key", changed)
    assert VALUE not in str(caught.value)
    for nonsense in (b"", b"[]", b"{}", b'{"nonce":"!","box":"!"}', b'{"nonce":1,"box":2}', b"\xff"):
        with pytest.raises(Sealed, match="is not a secret"):
            vault.open("shop", "pay", "api_key", nonsense)


def test_a_key_is_32_bytes_in_base64_or_hexadecimal() -> None:
    """Both are the same key; anything else is refused without being shown."""
    key = bytes(range(32))
    assert key_bytes(base64.b64encode(key).decode()) == key_bytes(key.hex()) == key
    for wrong in ("", "secret", "00" * 31, base64.b64encode(bytes(33)).decode(), "ä" * 44):
        with pytest.raises(ValueError, match="32 bytes") as caught:
            key_bytes(wrong)
        assert not wrong or wrong not in str(caught.value)


def test_secrets_are_sealed_to_who_asks() -> None:
    """Only the one whose key went out reads them."""
    worker, other = Recipient(), Recipient()
    sealed = seal_to(worker.key, {"api_key": VALUE, "empty": ""})
    assert worker.open(sealed) == {"api_key": VALUE, "empty": ""}
    assert VALUE not in sealed
    for who, what in ((other, sealed), (worker, "nothing"), (worker, "")):
        with pytest.raises(Sealed, match="not sealed to this worker"):
            who.open(what)
    for key in ("", "x", base64.b64encode(bytes(31)).decode()):
        with pytest.raises(ValueError, match="X25519"):
            seal_to(key, {})
