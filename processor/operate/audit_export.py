"""An audit in a folder: written so that others can check it with their own tools, and checked again here.

    chains/<chain>.ndjson   the records of a chain as they were stored, each behind a newline
    order.ndjson            in which order they came: [sequence, chain, first entry, entries] for each
    seals.ndjson            the seals as they were stored
    heads.json              what they are held against: where each chain ends, and what may have expired
    checkpoint              the signed note of the last seal (C2SP tlog-checkpoint)
    vkey, key.pem           the public key, for notes and for openssl
    tile/...                the log as C2SP tlog-tiles, where all of it is still there
    VERIFY.md               how to check all of that with openssl, sha256sum and bash

What must stay true: what was stored is written byte for byte. A folder that says it is complete was written
to its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, BinaryIO

import orjson

from processor.audit import SEALS, ChainHead, Seal
from processor.context.subjects import chain_of
from processor.errors import ConfigError
from processor.notes import Tiles, VerifierKey, checkpoint_of, public_pem
from processor.operate.audits import Audits
from processor.operate.proof import AuditReport, Claims, Verifier

VERSION = 1
_CHAIN = re.compile(r"[A-Za-z0-9_=-]{1,80}\.\d{1,9}\Z")

INSTRUCTIONS = Template("""\
# How to check this audit

This folder is the audit of the app `$app`, with $entries entries. It was written by `processor audit export`,
and `processor audit verify $verify` checks all of it. What follows needs bash, coreutils and openssl
only.$key

## The chains

Each line of `chains/<chain>.ndjson` that begins with `{"v":` is the head of a record; the others are entries.
The head behind an entry is the SHA-256 of the head before it and the line. This prints each chain's last
entry and head, which `heads.json` has under `ends`:

```bash
bytes() { printf '%b' "$$(sed 's/../\\\\x&/g' <<< "$$1")"; }
for file in chains/*.ndjson; do
  head=$$(sed -n '1s/.*"prev":"\\([0-9a-f]*\\)".*/\\1/p' "$$file")
  number=$$(sed -n '1s/.*"first":\\([0-9]*\\),.*/\\1/p' "$$file")
  while IFS= read -r line; do
    case $$line in '{"v":'*) continue ;; esac
    head=$$({ bytes "$$head"; printf '%s' "$$line"; } | sha256sum | cut -c 1-64)
    number=$$((number + 1))
  done < "$$file"
  echo "$$(basename "$$file" .ndjson) $$((number - 1)) $$head"
done
```
""")

_KEY = " Get the public key (`vkey`, `key.pem`) from where you trust it, not from this folder."

SIGNATURE_INSTRUCTIONS = """
## The signature

`checkpoint` says how many entries the log had, and the root of their Merkle tree (RFC 6962). It is a signed
note of C2SP: tools for transparency logs read it, too.

```bash
head -n 3 checkpoint > checkpoint.text
tail -n 1 checkpoint | cut -d ' ' -f 3 | base64 -d | tail -c 64 > checkpoint.signature
openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in checkpoint.text -sigfile checkpoint.signature
```
"""

SEAL_INSTRUCTIONS = """
## The seal

`checkpoint` says how many entries the log had, and the root of their Merkle tree (RFC 6962). There is no key
to check a signature of it with. Compare its root with what the log of the app said then
(`audit sealed size=... root=...`).
"""

NO_SEAL_INSTRUCTIONS = """
## The seal

There was none yet, so there is no checkpoint and no tree. The chains show what was changed, inserted or
removed within them, and `heads.json` where each ended when the folder was written.
"""

TREE_INSTRUCTIONS = """
## The tree

`tile/0` has the hash of each entry in order: SHA-256 of a zero byte and its line. Two hashes make the one
above them: SHA-256 of a byte 1 and both; a last one without a partner goes up as it is. This prints the root
in base64, as the third line of `checkpoint` has it:

```bash
bytes() { printf '%b' "$(sed 's/../\\\\x&/g' <<< "$1")"; }
level=($(find tile/0 -type f | LC_ALL=C sort | xargs cat | od -An -v -tx1 -w32 | tr -d ' '))
while [ ${#level[@]} -gt 1 ]; do
  above=()
  for ((i = 0; i + 1 < ${#level[@]}; i += 2)); do
    above+=($({ printf '\\1'; bytes "${level[i]}${level[i+1]}"; } | sha256sum | cut -c 1-64))
  done
  if ((${#level[@]} % 2)); then above+=("${level[-1]}"); fi
  level=("${above[@]}")
done
bytes "${level[0]}" | base64
```

An entry is in the log when its hash is in `tile/0`. For the first entry of a chain:

```bash
line=$(sed -n 2p "$(ls chains/*.ndjson | head -n 1)")
hash=$({ printf '\\0'; printf '%s' "$line"; } | sha256sum | cut -c 1-64)
find tile/0 -type f | LC_ALL=C sort | xargs cat | od -An -v -tx1 -w32 | tr -d ' ' | grep -n "$hash"
```
"""

PART_INSTRUCTIONS = """
## The tree

The first entries of the log have expired, so its tree cannot be made again from this folder. The seals in
`seals.ndjson` have the frontier of the tree: `processor audit verify` goes on from the first of them.
"""


@dataclass(frozen=True, slots=True)
class Exported:
    """What a folder got."""

    entries: int
    chains: int
    sealed: int  # entries in the tree of its checkpoint; 0 without a seal
    is_whole: bool  # nothing has expired, so that the tree is there


async def export(audits: Audits, app: str, folder: Path, keys: Sequence[VerifierKey]) -> Exported:
    """Write the audit of an app into an empty folder.

    Raises ConfigError E107 for a folder that cannot be written or has something in it, and what the broker
    raises.
    """
    try:
        _make(folder)
        return await _export(audits, app, folder, keys)
    except OSError as err:
        what = f"cannot be written: {err.strerror}"
        raise ConfigError("E107", what, place=str(err.filename or folder)) from err


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError("E107", "is not empty; an export needs a folder of its own", place=str(folder))


async def _export(audits: Audits, app: str, folder: Path, keys: Sequence[VerifierKey]) -> Exported:
    claims = await audits.claims(keys)
    seals = [payload for _, payload in claims.seals]
    first, last = _seal(seals[:1]), _seal(seals[-1:])
    size = last.frontier.size if last is not None else 0
    is_whole = first is not None and first.before[0] == 0
    tiles, entries = Tiles(), 0
    chains: set[str] = set()
    (folder / "chains").mkdir()
    with (folder / "order.ndjson").open("wb") as order:
        async with aclosing(audits.records()) as records:
            async for stored in records:
                chain = chain_of(app, stored.subject)
                if chain == SEALS or not _CHAIN.match(chain):  # what is no chain of ours has no place here
                    continue
                chains.add(chain)
                with (folder / "chains" / f"{chain}.ndjson").open("ab") as file:
                    file.write(stored.payload + b"\n")
                lines = stored.payload.split(b"\n")[1:]
                order.write(orjson.dumps([stored.sequence, chain, len(lines)]) + b"\n")
                for line in lines:
                    entries += 1
                    if is_whole and entries <= size:
                        _write(folder, tiles.add(line))
    if is_whole:
        _write(folder, tiles.rest())
    (folder / "seals.ndjson").write_bytes(b"".join(payload + b"\n" for payload in seals))
    if last is not None:
        (folder / "checkpoint").write_text(last.note)
    for key in keys[:1]:
        (folder / "vkey").write_text(f"{key}\n")
        (folder / "key.pem").write_bytes(public_pem(key.key))
    (folder / "VERIFY.md").write_text(_instructions(app, entries, last, bool(keys), is_whole=is_whole))
    heads = {
        "v": VERSION,
        "app": app,
        "at": claims.now_us,
        "keep": claims.keep_us,
        "stream": claims.stream,
        "created": claims.created,
        "ends": {chain: [head.number, head.digest.hex()] for chain, head in sorted(claims.ends.items())},
    }
    # Last, so that a folder without it was not written to its end.
    (folder / "heads.json").write_bytes(orjson.dumps(heads, option=orjson.OPT_INDENT_2) + b"\n")
    return Exported(entries, len(chains), size, is_whole)


def _instructions(app: str, entries: int, seal: Seal | None, has_key: bool, *, is_whole: bool) -> str:
    """How to check a folder with what is in it."""
    text = INSTRUCTIONS.substitute(
        app=app,
        entries=f"{entries:,}",
        verify="DIR --vkey vkey" if has_key else "DIR",
        key=_KEY if has_key else "",
    )
    if seal is None:
        return text + NO_SEAL_INSTRUCTIONS
    text += SIGNATURE_INSTRUCTIONS if has_key else SEAL_INSTRUCTIONS
    return text + (TREE_INSTRUCTIONS if is_whole else PART_INSTRUCTIONS)


def _seal(payloads: Sequence[bytes]) -> Seal | None:
    try:
        return Seal.decode(payloads[0]) if payloads else None
    except ValueError:
        return None


def _write(folder: Path, files: Iterator[tuple[str, bytes]]) -> None:
    for path, content in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def verify_export(folder: Path, keys: Sequence[VerifierKey]) -> AuditReport:
    """Whether a folder holds an audit that is what was written.

    Raises ConfigError E107 for one that is no whole export.
    """
    heads = _heads(folder)
    seals = _read(folder / "seals.ndjson").splitlines()
    claims = Claims(
        {chain: ChainHead.read({"n": n, "head": head}) for chain, (n, head) in heads["ends"].items()},
        [(f"seals.ndjson:{number}", payload) for number, payload in enumerate(seals, 1)],
        None,
        heads["stream"],
        heads["created"],
        heads["keep"],
        heads["at"],
        tuple(keys),
    )
    verifier, check = Verifier(claims), _TileCheck(folder, _seal(seals[:1]), _seal(seals[-1:]))
    files: dict[str, BinaryIO] = {}
    try:
        for number, row in enumerate(_read(folder / "order.ndjson").splitlines(), 1):
            try:
                sequence, chain, count = orjson.loads(row)
                if not _CHAIN.match(chain) or type(sequence) is not int or type(count) is not int:
                    raise ValueError
            except (ValueError, TypeError):
                raise _odd(folder / "order.ndjson", f"has an odd line {number}") from None
            path = folder / "chains" / f"{chain}.ndjson"
            if chain not in files:
                if not path.exists():
                    raise _odd(path, "is missing")
                files[chain] = path.open("rb")
            payload = b"".join(files[chain].readline() for _ in range(count + 1)).removesuffix(b"\n")
            verifier.take(sequence, chain, payload, f"chains/{chain}.ndjson")
            check.add(payload.split(b"\n")[1:])
        left = [chain for chain, file in files.items() if file.read(1)]
    finally:
        for file in files.values():
            file.close()
    unknown = {path.stem for path in (folder / "chains").iterdir()} - files.keys()
    report = verifier.finish()
    report.faults += [f"chains/{chain}.ndjson has records that order.ndjson lacks" for chain in left]
    report.faults += [f"chains/{chain}.ndjson is not in order.ndjson" for chain in sorted(unknown)]
    report.faults += check.faults()
    if seals:
        report.faults += _checkpoint_faults(folder, _seal(seals[-1:]))
    return report


class _TileCheck:
    """Compares the tiles of a folder with those that its entries make."""

    def __init__(self, folder: Path, first: Seal | None, last: Seal | None) -> None:
        self._folder = folder
        self._left = last.frontier.size if last and first and first.before[0] == 0 else 0
        self._tiles = Tiles()
        self._faults: list[str] = []

    def add(self, lines: Sequence[bytes]) -> None:
        """Take the next entries of the log."""
        for line in lines[: self._left]:
            self._compare(self._tiles.add(line))
        self._left -= min(self._left, len(lines))

    def faults(self) -> list[str]:
        """What is wrong, when all entries were taken."""
        self._compare(self._tiles.rest())
        return self._faults

    def _compare(self, made: Iterator[tuple[str, bytes]]) -> None:
        for path, content in made:
            file = self._folder / path
            if not file.is_file() or file.read_bytes() != content:
                self._faults.append(f"{path} is not the tile that the entries make")


def _checkpoint_faults(folder: Path, last: Seal | None) -> list[str]:
    note = _read(folder / "checkpoint").decode("utf-8", "replace")
    try:
        checkpoint_of(note, None)
    except ValueError as err:
        return [f"checkpoint: {err}"]
    return ["checkpoint is not the note of the last seal"] if last is None or note != last.note else []


def _heads(folder: Path) -> dict[str, Any]:
    path = folder / "heads.json"
    try:
        found = orjson.loads(_read(path))
        if type(found) is not dict or found.get("v") != VERSION:
            raise ValueError
        for chain, (number, head) in found["ends"].items():
            ChainHead.read({"n": number, "head": head})
            if not _CHAIN.match(chain):
                raise ValueError
        if not all(type(found[name]) is int for name in ("at", "keep")):
            raise ValueError
        if not all(type(found[name]) is str for name in ("stream", "created")):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _odd(path, f"is not that of an export of version {VERSION}") from None
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise _odd(path, f"cannot be read: {err.strerror}; is the export complete?") from err


def _odd(path: Path, what: str) -> ConfigError:
    return ConfigError("E107", what, place=str(path))
