"""Trees, checkpoints and keys: their bytes are those of the specifications, and openssl agrees."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.notes import (
    TILE_WIDTH,
    Checkpoint,
    Frontier,
    Tiles,
    VerifierKey,
    check_name,
    checkpoint_of,
    is_signature,
    leaf_hash,
    new_private_key,
    node_hash,
    private_pem,
    public_key_of,
    public_pem,
    read_private_key,
    read_public_key,
)

ORIGIN = "audit.example.com/market"


def tiles(entries: list[bytes]) -> Iterator[tuple[str, bytes]]:
    made = Tiles()
    for entry in entries:
        yield from made.add(entry)
    yield from made.rest()


def root_of(hashes: list[bytes]) -> bytes:
    """The tree of RFC 6962, section 2.1, as its text defines it."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    half = 1
    while half * 2 < len(hashes):
        half *= 2
    return node_hash(root_of(hashes[:half]), root_of(hashes[half:]))


@given(entries=st.lists(st.binary(max_size=20), max_size=70), at=st.integers(0, 70))
def test_a_frontier_has_the_root_of_the_whole_tree(entries: list[bytes], at: int) -> None:
    """Adding entries one by one, also after a frontier was stored, comes to the root of RFC 6962."""
    frontier = Frontier()
    for number, entry in enumerate(entries):
        if number == at:
            frontier = Frontier(frontier.size, [bytes.fromhex(root.hex()) for root in frontier.roots])
        frontier.add(entry)
    assert frontier.root == root_of([leaf_hash(entry) for entry in entries])
    assert frontier.size == len(entries)
    assert len(frontier.roots) == len(entries).bit_count()


# The reference tree of Certificate Transparency: its leaves, and the root after each.
REFERENCE = [
    ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
    ("00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
    ("10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
    ("2021", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
    ("3031", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
    ("40414243", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
    ("5051525354555657", "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
    ("606162636465666768696a6b6c6d6e6f", "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
]


def test_the_tree_is_that_of_certificate_transparency() -> None:
    """The roots of the reference implementation's test vectors are ours."""
    frontier = Frontier()
    assert frontier.root.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for leaf, root in REFERENCE:
        frontier.add(bytes.fromhex(leaf))
        assert frontier.root.hex() == root


def test_a_frontier_that_no_tree_has_is_refused() -> None:
    """A size and roots that do not belong together are no frontier."""
    for size, roots in ((3, [bytes(32)]), (1, [bytes(31)]), (-1, []), (0, [bytes(32)])):
        with pytest.raises(ValueError, match=f"a tree of {size} entries"):
            Frontier(size, roots)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 66_000])
def test_tiles_hold_the_tree(count: int) -> None:
    """Each hash of a tile above the lowest is the root of the full tile below it; entries are whole."""
    entries = [b"%d" % number for number in range(count)]
    made = dict(tiles(entries))
    read: list[bytes] = []
    for number in range(-(-count // TILE_WIDTH)):
        [path] = [p for p in made if p.removeprefix("tile/entries/").partition(".p/")[0] == f"{number:03}"]
        content = made[path]
        while content:
            size = int.from_bytes(content[:2], "big")
            read.append(content[2 : 2 + size])
            content = content[2 + size :]
    assert read == entries
    for level in range(3):
        below = b"".join(content for path, content in made.items() if path.startswith(f"tile/{level}/"))
        above = b"".join(content for path, content in made.items() if path.startswith(f"tile/{level + 1}/"))
        hashes = [below[at : at + 32] for at in range(0, len(below), 32)]
        full = [hashes[at : at + TILE_WIDTH] for at in range(0, len(hashes), TILE_WIDTH)]
        assert above == b"".join(root_of(part) for part in full if len(part) == TILE_WIDTH)
    if count == 66_000:
        assert {"tile/0/000", "tile/0/257.p/208", "tile/1/001.p/1", "tile/2/000.p/1"} <= made.keys()


def test_the_path_of_a_tile_is_in_groups_of_three_digits() -> None:
    """Numbers of tiles from a thousand on are folders."""
    last = list(tiles([b""] * (TILE_WIDTH * 1234 + 1)))
    assert "tile/entries/x001/234.p/1" in [path for path, _ in last]


# Made by the note package of Go (golang.org/x/mod/sumdb/note), from its documentation.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6"
    "KE6RyyBwJnAM=\n"
)  # fmt: skip


def test_a_note_that_go_signed_is_read() -> None:
    """The example of Go's own package is signed by its key; changed in one letter it is not."""
    key = VerifierKey.read(GO_KEY)
    assert str(key) == GO_KEY
    with pytest.raises(ValueError, match="the note is no checkpoint"):  # it is signed, and says no size
        checkpoint_of(GO_NOTE, key)
    with pytest.raises(ValueError, match="the signature of PeterNeumann does not fit the note"):
        checkpoint_of(GO_NOTE.replace("problem", "Problem"), key)


@pytest.fixture
def private_key() -> bytes:
    return bytes(range(32))


def test_a_checkpoint_is_signed_and_read(private_key: bytes) -> None:
    """A note has just the bytes of C2SP tlog-checkpoint, and is read with the key of its origin."""
    checkpoint = Checkpoint(ORIGIN, 300, bytes(32))
    verifier = VerifierKey(ORIGIN, public_key_of(private_key))
    note = checkpoint.note(private_key)
    text, signature = note.split("\n\n")
    assert f"{text}\n" == checkpoint.text == f"{ORIGIN}\n300\n{'A' * 43}=\n"
    said, name, encoded = signature.removesuffix("\n").split(" ")
    raw = base64.b64decode(encoded)
    assert (said, name, raw[:4], len(raw)) == ("\u2014", ORIGIN, verifier.hash, 68)
    assert checkpoint_of(note, VerifierKey.read(f"{verifier}\n")) == checkpoint
    assert checkpoint_of(note, None) == checkpoint
    witnessed = f"{note}\u2014 witness.example/w {base64.b64encode(bytes(72)).decode()}\n"
    assert checkpoint_of(witnessed, verifier) == checkpoint


def test_an_unsigned_checkpoint_is_its_text(private_key: bytes) -> None:
    """Without a key the note is read all the same, but never taken for a signed one."""
    checkpoint = Checkpoint(ORIGIN, 1, bytes(32))
    assert checkpoint.note(None) == checkpoint.text
    assert checkpoint_of(checkpoint.note(None), None) == checkpoint
    with pytest.raises(ValueError, match="the note is not signed"):
        checkpoint_of(checkpoint.note(None), VerifierKey(ORIGIN, public_key_of(private_key)))


@given(place=st.integers(0, 400), bit=st.integers(0, 7))
def test_a_changed_note_is_refused(place: int, bit: int) -> None:
    """No note with a bit turned around is what its key has signed."""
    key = bytes(range(32))
    raw = bytearray(Checkpoint(ORIGIN, 300, bytes(range(32))).note(key).encode())
    raw[place % len(raw)] ^= 1 << bit
    note = raw.decode("utf-8", "surrogateescape")
    with pytest.raises(ValueError, match=r"note|checkpoint"):
        checkpoint_of(note, VerifierKey(ORIGIN, public_key_of(key)))


def test_the_key_of_another_is_none(private_key: bytes) -> None:
    """A note is not read with a key of the same name, nor of another name with the same bytes."""
    note = Checkpoint(ORIGIN, 300, bytes(32)).note(private_key)
    with pytest.raises(ValueError, match="the note is not signed by"):
        checkpoint_of(note, VerifierKey(ORIGIN, public_key_of(bytes(32))))
    with pytest.raises(ValueError, match="the note is not signed by"):
        checkpoint_of(note, VerifierKey("another", public_key_of(private_key)))


@pytest.mark.parametrize(
    "text",
    ["", "a+b", "a+00000000+AA==", f"a b{GO_KEY[12:]}", GO_KEY[:-2], GO_KEY.replace("+A", "+B"), GO_KEY[1:]],
)  # fmt: skip
def test_a_verifier_key_that_cannot_be_read_says_so(text: str) -> None:
    """A key is taken whole, with the hash that it states."""
    with pytest.raises(ValueError, match="verifier key"):
        VerifierKey.read(text)


@pytest.mark.parametrize(
    ("note", "what"),
    [
        ("", "no checkpoint"),
        ("a\n1\n", "no checkpoint"),
        ("a b\n1\n" + "A" * 43 + "=\n", "no checkpoint"),
        ("a\n01\n" + "A" * 43 + "=\n", "no checkpoint"),
        ("a\n1\nAAAA\n", "the root of the checkpoint is 'AAAA'"),
        ("a\n1\n!\n", "the root of the checkpoint is '!'"),
    ],
)
def test_a_note_that_is_no_checkpoint_says_why(note: str, what: str) -> None:
    """Odd notes are named, never taken for a checkpoint."""
    with pytest.raises(ValueError, match=what):
        checkpoint_of(note, None)


def test_names_of_logs_are_one_word() -> None:
    """A name that a note cannot have is refused before anything is signed."""
    assert check_name(ORIGIN) == ORIGIN
    for name in ("", "a b", "a+b", "a\n", "x" * 256):
        with pytest.raises(ValueError, match="is no name of a log"):
            check_name(name)


def test_new_keys_differ_and_are_kept_as_pem() -> None:
    """A key is random, and both of its halves are read as they were written."""
    keys = [new_private_key() for _ in range(3)]
    assert all(one != other for one, other in pairwise(keys))
    for key in keys:
        assert read_private_key(private_pem(key)) == key
        assert read_public_key(public_pem(public_key_of(key))) == public_key_of(key)
        with pytest.raises(ValueError, match="not the public key of Ed25519") as raised:
            read_public_key(private_pem(key))
        assert base64.b64encode(key).decode() not in str(raised.value)


OPENSSL = shutil.which("openssl")


@pytest.mark.skipif(OPENSSL is None, reason="no openssl here to compare with")
def test_openssl_agrees(tmp_path: Path) -> None:
    """A key that openssl makes signs checkpoints that openssl verifies, and it reads keys made here."""
    assert OPENSSL is not None
    pem, public, text, signature = (
        tmp_path / name for name in ("key.pem", "public.pem", "text", "signature")
    )
    subprocess.run(
        [OPENSSL, "genpkey", "-algorithm", "ed25519", "-out", pem], check=True, capture_output=True
    )
    key = read_private_key(pem.read_bytes())
    assert private_pem(key) == pem.read_bytes()
    subprocess.run([OPENSSL, "pkey", "-in", pem, "-pubout", "-out", public], check=True, capture_output=True)
    assert public.read_bytes() == public_pem(public_key_of(key))
    checkpoint = Checkpoint(ORIGIN, 300, bytes(32))
    raw = base64.b64decode(checkpoint.note(key).removesuffix("\n").rpartition(" ")[2])[4:]
    text.write_text(checkpoint.text)
    signature.write_bytes(raw)
    verify = [OPENSSL, "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", text]
    done = subprocess.run([*verify, "-sigfile", signature], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "Signature Verified Successfully")
    assert is_signature(public_key_of(key), checkpoint.text.encode(), raw)
    assert not is_signature(public_key_of(key), checkpoint.text.encode(), raw[:-1])
