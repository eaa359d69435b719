"""What a release is made of, and whether a folder holds one unchanged.

A release is a folder: the wheel, the lock file, bills of materials, a report on vulnerabilities, and
`provenance.json`, which names each of these with its SHA-256 and says from which commit and lock they were
made. That statement is signed; `verify` is everything that has to be true of the folder.

Formats: in-toto Statement v1 with the predicate SLSA Provenance v1; DSSE v1 for what is signed (its
pre-authentication encoding, `signed_bytes`); Ed25519 (RFC 8032) with keys as `openssl genpkey` writes them
(RFC 8410).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from processor import notes
from processor.errors import ProcessorError
from processor.notes import fingerprint, is_signature

STATEMENT = "provenance.json"
ENVELOPE = "provenance.dsse.json"
SIGNATURE = "provenance.sig"
KEY = "release.pub"
INSTRUCTIONS = "VERIFY.md"
# What cannot be named in the statement: itself, its signature, and what says how to check them.
UNNAMED = frozenset({STATEMENT, ENVELOPE, SIGNATURE, KEY, INSTRUCTIONS})
PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True, slots=True)
class Release:
    """A release that was verified."""

    commit: str  # of git
    files: tuple[str, ...]
    key: str  # fingerprint: SHA-256 of the public key's DER, in hex


def verify(folder: Path, public_key: bytes) -> Release:
    """Check a folder against its signed statement; `public_key` is PEM.

    Raises ProcessorError E509 with the first thing that is wrong: a signature that does not fit the statement
    and the key, a file that was changed, one that is missing, or one that the statement does not name.
    """
    raw = _read(folder, STATEMENT)
    key = read_public_key(public_key)
    signatures = {SIGNATURE: _read(folder, SIGNATURE), ENVELOPE: _signature_of(_read(folder, ENVELOPE), raw)}
    for name, signature in signatures.items():
        if not is_signature(key, signed_bytes(raw), signature):
            raise _wrong(folder / name, f"is not a signature of {STATEMENT} by the key {fingerprint(key)}")
    statement = _statement(folder, raw)
    named = {}
    for subject in statement["subject"]:
        named[subject["name"]] = subject["digest"]["sha256"]
    there = {path.name for path in folder.iterdir()} - UNNAMED
    for name, digest in named.items():
        if name not in there:
            raise _wrong(folder / name, "is missing")
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != digest:
            raise _wrong(
                folder / name, f"was changed: its SHA-256 is {found}, and the statement says {digest}"
            )
    if unknown := sorted(there - named.keys()):
        raise _wrong(folder / unknown[0], "is not part of the release: the statement does not name it")
    sources = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    commit = next(source["digest"]["gitCommit"] for source in sources if "gitCommit" in source["digest"])
    return Release(commit, tuple(sorted(named)), fingerprint(key))


def signed_bytes(statement: bytes) -> bytes:
    """What is signed of a statement: the pre-authentication encoding of DSSE v1."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(statement), statement)


def envelope(statement: bytes, signature: bytes, key: bytes) -> bytes:
    """The DSSE envelope of a signed statement."""
    document = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(statement).decode(),
        "signatures": [{"keyid": fingerprint(key), "sig": base64.b64encode(signature).decode()}],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def read_public_key(pem: bytes) -> bytes:
    """The 32 bytes of an Ed25519 public key. Raises ProcessorError E509."""
    return _key(notes.read_public_key, pem)


def read_private_key(pem: bytes) -> bytes:
    """The 32 bytes of an Ed25519 private key, as `openssl genpkey -algorithm ed25519` makes it.

    Raises ProcessorError E509.
    """
    return _key(notes.read_private_key, pem)


def _key(read: Callable[[bytes], bytes], pem: bytes) -> bytes:
    try:
        return read(pem)
    except ValueError as err:
        raise ProcessorError(
            "E509",
            str(err),
            remedy="Make one with 'openssl genpkey -algorithm ed25519 -out release.pem'; its public half is"
            " what 'openssl pkey -in release.pem -pubout' prints.",
        ) from err


def _signature_of(raw: bytes, statement: bytes) -> bytes:
    """The signature in an envelope of just this statement; nothing where it is of another."""
    try:
        document = orjson.loads(raw)
        if document["payloadType"] == PAYLOAD_TYPE and base64.b64decode(document["payload"]) == statement:
            [signature] = document["signatures"]
            return base64.b64decode(signature["sig"])
    except (ValueError, KeyError, TypeError):
        pass  # as good as none
    return b""


def _statement(folder: Path, raw: bytes) -> Mapping[str, Any]:
    # It is signed, so it is ours; by a build that this one does not know, it may be of another form.
    document = orjson.loads(raw)
    if document.get("_type") != "https://in-toto.io/Statement/v1":
        raise _wrong(folder / STATEMENT, "is not an in-toto Statement v1")
    return dict(document)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as err:
        raise _wrong(folder / name, f"cannot be read: {err.strerror}") from err


def _wrong(path: Path, what: str) -> ProcessorError:
    return ProcessorError("E509", f"{path} {what}")
