"""The Merkle tree over a log of entries, and signed notes that say how far it has come.

Formats only, each as its specification has it, so that the tools of others read what we write:
- the tree of RFC 6962, section 2.1: `Frontier` adds to it, `Tiles` lays it out as C2SP tlog-tiles does;
- the signed note of C2SP signed-note, with Ed25519, and in it a checkpoint of C2SP tlog-checkpoint;
- Ed25519 keys as `openssl genpkey` writes them (PKCS#8 and SubjectPublicKeyInfo in PEM, RFC 8410).

What must stay true: nothing that was not checked leaves `checkpoint_of` as a checkpoint; a private key is in
no error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nacl.exceptions
import nacl.signing

KEY_BYTES = 32
_HASH_BYTES = 32
_SIGNATURE_BYTES = 64
_ED25519 = b"\x01"  # the algorithm, in a verifier key and its hash
# An Ed25519 key is these bytes and the 32 of the key (RFC 8410, DER).
_PUBLIC_HEAD = bytes.fromhex("302a300506032b6570032100")
_PRIVATE_HEAD = bytes.fromhex("302e020100300506032b657004220420")
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}\Z")
_SIGNATURE_LINE = re.compile(r"\u2014 (?P<name>[^\s+]+) (?P<signature>[A-Za-z0-9+/]+={0,2})\Z")
_SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\Z")
TILE_WIDTH = 256


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry as a leaf of the tree."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees as one."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree, by the roots of the full subtrees that it is made of: what is needed to add to it."""

    __slots__ = ("_roots", "size")

    def __init__(self, size: int = 0, roots: Sequence[bytes] = ()) -> None:
        """Raises ValueError for roots that a tree of this size cannot have."""
        if size < 0 or len(roots) != size.bit_count() or any(len(root) != _HASH_BYTES for root in roots):
            raise ValueError(f"a tree of {size} entries has not {len(roots)} full subtrees of these hashes")
        self.size = size
        self._roots = list(roots)

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The roots of its full subtrees, the largest first."""
        return tuple(self._roots)

    def add(self, entry: bytes) -> None:
        """Append one entry."""
        node, size = leaf_hash(entry), self.size
        while size & 1:
            node = node_hash(self._roots.pop(), node)
            size >>= 1
        self._roots.append(node)
        self.size += 1

    @property
    def root(self) -> bytes:
        """The hash of the whole tree."""
        if not self._roots:
            return hashlib.sha256(b"").digest()
        node = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            node = node_hash(left, node)
        return node

    def copy(self) -> Frontier:
        """The same tree, to be added to apart from this one."""
        return Frontier(self.size, self._roots)


class Tiles:
    """The files of C2SP tlog-tiles for a whole log, below the place of its checkpoint: path and content.

    They come as entries are added; no more than a tile of each level is held.
    """

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]  # of each, the hashes that fill no tile yet
        self._done = [0]  # full tiles of each level
        self._bundle: list[bytes] = []

    def add(self, entry: bytes) -> Iterator[tuple[str, bytes]]:
        """Append an entry, of at most 65,535 bytes: the files that are full with it."""
        self._bundle.append(len(entry).to_bytes(2, "big") + entry)
        self._levels[0].append(leaf_hash(entry))
        if len(self._bundle) == TILE_WIDTH:
            yield f"tile/entries/{_tile_path(self._done[0], TILE_WIDTH)}", b"".join(self._bundle)
            self._bundle = []
        level = 0
        while len(full := self._levels[level]) == TILE_WIDTH:
            yield f"tile/{level}/{_tile_path(self._done[level], TILE_WIDTH)}", b"".join(full)
            self._levels[level] = []
            self._done[level] += 1
            level += 1
            if level == len(self._levels):
                self._levels.append([])
                self._done.append(0)
            self._levels[level].append(_full_root(full))

    def rest(self) -> Iterator[tuple[str, bytes]]:
        """The files that are not full, when every entry was added."""
        if self._bundle:
            yield f"tile/entries/{_tile_path(self._done[0], len(self._bundle))}", b"".join(self._bundle)
        for level, part in enumerate(self._levels):
            if part:
                yield f"tile/{level}/{_tile_path(self._done[level], len(part))}", b"".join(part)


def _full_root(hashes: Sequence[bytes]) -> bytes:
    while len(hashes) > 1:
        hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
    return hashes[0]


def _tile_path(number: int, width: int) -> str:
    path = f"{number % 1000:03}"
    while number := number // 1000:
        path = f"x{number % 1000:03}/{path}"
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with the name that it signs under, as notes know it."""

    name: str
    key: bytes

    @property
    def hash(self) -> bytes:
        """The four bytes that stand before its signatures."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.hash.hex()}+{base64.b64encode(_ED25519 + self.key).decode()}"

    @classmethod
    def read(cls, text: str) -> VerifierKey:
        """The key written as `<name>+<hash>+<key>`. Raises ValueError."""
        name, _, rest = text.strip().partition("+")
        stated, _, encoded = rest.partition("+")
        try:
            raw = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raw = b""
        key = cls(name, raw[1:])
        if not _NAME.match(name) or raw[:1] != _ED25519 or len(raw) != 1 + KEY_BYTES:
            raise ValueError(f"{text.strip()[:80]!r} is no verifier key of Ed25519: <name>+<hash>+<key>")
        if key.hash.hex() != stated:
            raise ValueError(f"the verifier key {text.strip()[:80]!r} has the hash {key.hash.hex()}")
        return key


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a log has come: its name, the number of its entries, and the hash of their tree."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """What is signed of it."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def note(self, private_key: bytes | None) -> str:
        """The signed note, in the name of its origin; without a key the same text, unsigned."""
        if private_key is None:
            return self.text
        signer = nacl.signing.SigningKey(private_key)
        verifier = VerifierKey(self.origin, bytes(signer.verify_key))
        signature = base64.b64encode(verifier.hash + signer.sign(self.text.encode()).signature).decode()
        return f"{self.text}\n\u2014 {self.origin} {signature}\n"


def checkpoint_of(note: str, verifier: VerifierKey | None) -> Checkpoint:
    """The checkpoint in a note that `verifier` has signed, or, without one, whoever signed it or not.

    Signatures of others beside it are let be, as witnesses' are. Raises ValueError with what is wrong.
    """
    if re.search(r"[\ud800-\udfff]", note):
        raise ValueError("the note is not UTF-8")
    text, divider, signatures = note.rpartition("\n\n")
    text = f"{text}\n" if divider else note
    if verifier is not None:
        _check_signed(text, signatures if divider else "", verifier)
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] != "" or not _NAME.match(lines[0]) or not _SIZE.match(lines[1]):
        raise ValueError("the note is no checkpoint: an origin, a size and a root, each on a line")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except binascii.Error:
        root = b""
    if len(root) != _HASH_BYTES:
        raise ValueError(f"the root of the checkpoint is {lines[2][:80]!r}, not 32 bytes in base64")
    if verifier is not None and lines[0] != verifier.name:
        raise ValueError(f"the checkpoint is of {lines[0]}, and the key of {verifier.name}")
    return Checkpoint(lines[0], int(lines[1]), root)


def _check_signed(text: str, signatures: str, verifier: VerifierKey) -> None:
    if not signatures.endswith("\n"):
        raise ValueError("the note is not signed")
    for line in signatures[:-1].split("\n"):
        said = _SIGNATURE_LINE.match(line)
        if said is None:
            raise ValueError(f"{line[:80]!r} is no signature of a note")
        try:
            raw = base64.b64decode(said["signature"], validate=True)
        except binascii.Error:
            raw = b""
        if said["name"] == verifier.name and raw[:4] == verifier.hash:
            if not is_signature(verifier.key, text.encode(), raw[4:]):
                raise ValueError(f"the signature of {verifier.name} does not fit the note")
            return
    raise ValueError(f"the note is not signed by {verifier}")


def is_signature(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether it is what the key's owner signed (Ed25519)."""
    if len(signature) != _SIGNATURE_BYTES:
        return False
    try:
        nacl.signing.VerifyKey(public_key).verify(message, signature)
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.ValueError):
        return False
    return True


def check_name(text: str) -> str:
    """Return `text` if logs and keys can have it as their name; else ValueError says why not."""
    if not _NAME.match(text):
        raise ValueError(f"{text[:80]!r} is no name of a log: 1 to 255 characters without white space or '+'")
    return text


def new_private_key() -> bytes:
    """A new Ed25519 key of random bytes."""
    return bytes(nacl.signing.SigningKey.generate())


def public_key_of(private_key: bytes) -> bytes:
    """The public half of a key."""
    return bytes(nacl.signing.SigningKey(private_key).verify_key)


def fingerprint(public_key: bytes) -> str:
    """The SHA-256 of a public key's DER, as `openssl pkey -pubin -outform DER | sha256sum` prints it."""
    return hashlib.sha256(_PUBLIC_HEAD + public_key).hexdigest()


def read_public_key(pem: bytes) -> bytes:
    """The 32 bytes of an Ed25519 public key. Raises ValueError for what is none."""
    return _key(pem, b"PUBLIC KEY", _PUBLIC_HEAD)


def read_private_key(pem: bytes) -> bytes:
    """The 32 bytes of an Ed25519 private key, as `openssl genpkey -algorithm ed25519` makes it.

    Raises ValueError for what is none.
    """
    return _key(pem, b"PRIVATE KEY", _PRIVATE_HEAD)


def public_pem(key: bytes) -> bytes:
    """A public key as PEM."""
    return _pem(b"PUBLIC KEY", _PUBLIC_HEAD + key)


def private_pem(key: bytes) -> bytes:
    """A private key as PEM, for a file that nobody else may read."""
    return _pem(b"PRIVATE KEY", _PRIVATE_HEAD + key)


def _pem(label: bytes, der: bytes) -> bytes:
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, base64.b64encode(der), label)


def _key(pem: bytes, label: bytes, head: bytes) -> bytes:
    lines = [line.strip() for line in pem.splitlines() if line.strip()]
    is_framed = lines[:1] == [b"-----BEGIN %b-----" % label] and lines[-1:] == [b"-----END %b-----" % label]
    try:
        der = base64.b64decode(b"".join(lines[1:-1]), validate=True) if is_framed else b""
    except binascii.Error:
        der = b""
    if not der.startswith(head) or len(der) != len(head) + KEY_BYTES:
        raise ValueError(f"the key is not the {label.decode().lower()} of Ed25519 in PEM")
    return der[len(head) :]
