"""Secrets that were uploaded with a graph: sealed where they are kept, and on their way to a worker.

In the app's stream a value is sealed with XChaCha20-Poly1305 under the key of the app (`engine.secrets_key`),
bound to app, graph and name: moved to another place it does not open. An external worker gets the values that
its kind declares sealed to a key that it makes for the purpose (X25519), so that neither the server nor who
listens on its subjects can read them.

Nothing here talks to a server, and no error holds a value or a key.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import nacl.exceptions
import nacl.utils
import orjson
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
    crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
)
from nacl.public import PrivateKey, PublicKey, SealedBox

VALUE_BYTES = 64 << 10  # the largest secret
_HEX = re.compile(r"[0-9a-fA-F]{64}")


class Sealed(ValueError):
    """Something that was sealed cannot be opened; says why, and holds nothing of it."""


class SecretVault:
    """Seals the secrets of an app, and opens them again."""

    def __init__(self, key: str) -> None:
        """`key` is 32 bytes as base64 or as 64 hexadecimal digits. Raises ValueError for anything else."""
        self._key = key_bytes(key)

    def seal(self, app: str, graph: str, name: str, value: str) -> bytes:
        """The document that is kept for a secret of a graph."""
        nonce = nacl.utils.random(crypto_aead_xchacha20poly1305_ietf_NPUBBYTES)
        box = crypto_aead_xchacha20poly1305_ietf_encrypt(
            value.encode(), _bound(app, graph, name), nonce, self._key
        )
        return orjson.dumps({"v": 1, "nonce": _text(nonce), "box": _text(box)})

    def open(self, app: str, graph: str, name: str, document: bytes) -> str:
        """The value of a secret. Raises Sealed."""
        try:
            body = orjson.loads(document)
            nonce, box = _bytes(body["nonce"]), _bytes(body["box"])
            return crypto_aead_xchacha20poly1305_ietf_decrypt(
                box, _bound(app, graph, name), nonce, self._key
            ).decode()
        except nacl.exceptions.CryptoError:
            raise Sealed(f"secret {name!r} of graph {graph!r} was sealed with another key") from None
        except (ValueError, KeyError, TypeError):
            raise Sealed(f"what is kept as secret {name!r} of graph {graph!r} is not a secret") from None


class Recipient:
    """Who asks for secrets: its public key goes out, and what is sealed to that comes back."""

    def __init__(self) -> None:
        self._private = PrivateKey.generate()

    @property
    def key(self) -> str:
        """The public key, as base64."""
        return _text(bytes(self._private.public_key))

    def open(self, sealed: str) -> dict[str, str]:
        """The values by name. Raises Sealed where this is not sealed to us."""
        try:
            found: dict[str, str] = orjson.loads(SealedBox(self._private).decrypt(_bytes(sealed)))
        except (nacl.exceptions.CryptoError, ValueError, TypeError):
            raise Sealed("what came as secrets was not sealed to this worker") from None
        return found


def seal_to(key: str, values: Mapping[str, str]) -> str:
    """`values` as only the owner of that public key can read them. Raises ValueError for what is no key."""
    try:
        public = PublicKey(_bytes(key))
    except (ValueError, TypeError, nacl.exceptions.TypeError, nacl.exceptions.ValueError):
        raise ValueError("it is not an X25519 public key in base64") from None
    return _text(SealedBox(public).encrypt(orjson.dumps(dict(values))))


def key_bytes(text: str) -> bytes:
    """The key that a text is. Raises ValueError."""
    try:
        key = bytes.fromhex(text) if _HEX.fullmatch(text) else _bytes(text)
    except ValueError:
        key = b""
    if len(key) != crypto_aead_xchacha20poly1305_ietf_KEYBYTES:
        raise ValueError("it is not 32 bytes as base64 or as 64 hexadecimal digits")
    return key


def new_key() -> str:
    """A key for `SecretVault`, at random."""
    return _text(nacl.utils.random(crypto_aead_xchacha20poly1305_ietf_KEYBYTES))


def _bound(app: str, graph: str, name: str) -> bytes:
    return f"{app}/{graph}/{name}".encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as err:
        raise ValueError(str(err)) from None
