"""The audit of a running app: sealed as it comes, read, verified, and written for others to check."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.audit import GENESIS, SEALS, AuditEntry, ChainHead, Seal, chained
from processor.cli.audits import filter_of
from processor.config import load
from processor.context.history import Author
from processor.context.subjects import RouteSubjects, audit_subject
from processor.errors import ConfigError
from processor.jetstream import KEPT, Broker, Outgoing
from processor.model import partition_of
from processor.notes import VerifierKey, new_private_key, private_pem
from processor.operate.audit_export import export, verify_export
from processor.operate.audits import AuditFilter, Audits, own_key
from processor.operate.edits import ContextEdits
from processor.operate.proof import AuditReport
from tests.conftest import waited
from tests.running import Running, Start

ROUTE = "r: {input: {subject: in, create: true}, runnable: echo.py, output: out}"
ECHO = """
class Runnable:
    def process(self, inputs):
        yield from inputs
"""
AUDITED = """
audit:
  level: calls
  key_file: audit.pem
  origin: audit.example.com
  seal: {entries: 5, seconds: 1}
"""
Messages = list[tuple[str, bytes]]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "audit.pem"
    path.write_bytes(private_pem(new_private_key()))
    return path


async def write(broker: Broker, partition: int, count: int, **more: Any) -> None:
    """Commit so many entries and the position of a partition, as a route does."""
    subjects, chain = RouteSubjects("app", "enrich"), f"enrich.{partition}"
    stored = await broker.last_of("P_app", [subjects.position(partition)])
    head = ChainHead.read(orjson.loads(stored[0].payload)["audit"]) if stored else GENESIS
    made = [
        AuditEntry(
            **{
                "event": "http", "fate": "committed", "moment_us": 1764459600000000 + number,
                "route": "enrich",
                "actor": "program:4f1b", "operation": "get", "target": f"https://a.example/{number}", **more,
            }
        )
        for number in range(head.number + 1, head.number + count + 1)
    ]  # fmt: skip
    records, head = chained(made, chain, head, "0123456789abcdef", 1 << 20)
    position = {"v": 1, "audit": {"n": head.number, "head": head.digest.hex(), "late": 0}}
    await broker.commit(
        [
            *(Outgoing(audit_subject("app", chain), record.encoded()) for record in records),
            Outgoing(subjects.position(partition), orjson.dumps(position), KEPT),
        ]
    )


async def sealed(broker: Broker, size: int) -> Seal:
    """The last seal, as soon as so many entries are sealed and the seal is copied."""

    async def last() -> Seal | None:
        stored = await broker.last_of("AUDIT_app", [audit_subject("app", SEALS)])
        seal = Seal.decode(stored[0].payload) if stored else None
        return seal if seal is not None and seal.frontier.size >= size else None

    found: Seal = await waited(last, f"{size} entries are sealed")
    return found


async def report_of(running: Running) -> AuditReport:
    config = load(running.path, {})
    key = own_key(config)
    return await Audits(running.broker, config).verify([key] if key is not None else [])


async def run_cli(running: Running, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", "audit", *arguments),
        env={"NATS_URL": running.broker.address, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_entries_are_sealed_as_they_come(
    processor: Start, key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After so many of them, and some time after the last: each seal signed, and one line of the log."""
    caplog.set_level(logging.INFO, "processor")
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        await write(running.broker, 0, 7)
        await write(running.broker, 1, 1)
        seal = await sealed(running.broker, 9)  # and the start of the route
        verifier = own_key(load(running.path, {}))
        assert verifier is not None
        assert verifier.name == "audit.example.com/app"
        said = seal.checkpoint(verifier)
        assert {chain: seal.heads[chain].number for chain in ("enrich.0", "enrich.1")} == {
            "enrich.0": 7, "enrich.1": 1,
        }  # fmt: skip
        assert f"audit sealed size={said.size} root={said.root.hex()} signed" in caplog.text
        assert running.metric("processor_audit_sealed_entries") == said.size
        assert running.metric("processor_audit_broken") == 0
        report = await report_of(running)
        assert report.faults == []
        assert (report.chains, report.sealed) == (3, said.size)
        assert report.signed == report.seals > 0
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:  # the next notary goes on from there
        await write(running.broker, 0, 3)
        next_ = await sealed(running.broker, said.size + 3)
        assert next_.heads["enrich.0"].number == 10
        assert (await report_of(running)).faults == []


async def test_one_of_several_processors_seals(processor: Start, tmp_path: Path, key: Path) -> None:
    """Seals follow each other without a gap, whoever makes them, also when the notary goes."""
    async with (
        processor(ROUTE, AUDITED, echo=ECHO) as first,
        processor(ROUTE, AUDITED, echo=ECHO) as second,
    ):
        for _ in range(4):
            await write(first.broker, 0, 6)
        await sealed(second.broker, 24)
        await first.service.stop()
        await write(second.broker, 0, 6)
        await sealed(second.broker, 30)
        assert (await report_of(second)).faults == []


async def test_without_a_key_seals_are_unsigned(processor: Start) -> None:
    """The tree is sealed all the same; signatures can be checked with a key only."""
    async with processor(ROUTE, "audit: {level: runs, seal: {seconds: 1}}", echo=ECHO) as running:
        await write(running.broker, 0, 2)
        seal = await sealed(running.broker, 3)
        assert seal.note == seal.checkpoint(None).text
        code, out, _ = await run_cli(running, "verify", str(running.path), "--format", "human")
        assert code == 0
        assert re.match(
            r"the audit of app is what was written: \d+ entries in 2 chains, \d+ of them under \d+ seals? "
            r"\(no key was given, so signatures were not checked\)\n\Z",
            out,
        )


async def test_a_limit_that_drops_entries_is_found(processor: Start, key: Path) -> None:
    """What a server accepts of somebody with the rights, though nothing may be deleted: `max_msgs: 10`."""
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        for _ in range(20):
            await write(running.broker, 0, 1)
        await sealed(running.broker, 20)
        info = await running.broker.stream("AUDIT_app")
        assert info is not None
        await running.broker.update_stream({**info["config"], "max_msgs": 10})
        code, out, _ = await run_cli(running, "verify", str(running.path), "--format", "human")
        assert code == 1
        assert re.search(
            r"^audit: chain enrich\.0 breaks at entry 1: entries 1 to \d+ are missing$", out, re.M
        )
        assert "the audit of app is broken" in out


async def test_a_stream_that_is_deleted_is_found(processor: Start, key: Path) -> None:
    """Without it everything is missing; made anew, what the app's own stream still has is not."""
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        await write(running.broker, 0, 6)
        await sealed(running.broker, 6)
        await running.service.stop()
        await running.broker.api("STREAM.DELETE.AUDIT_app")
        report = await report_of(running)
        assert report.faults[0] == "stream AUDIT_app is not there"
        assert (
            "chain enrich.0 breaks at entry 1: entries 1 to 6 are missing: its position is at 6"
            in report.faults
        )
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        await waited(lambda: running.metric("processor_audit_broken") == 1, "the notary says so")


async def forge(broker: Broker, messages: Messages) -> None:
    """Put another stream in place of the audit's, with these messages."""
    for name in ("AUDIT_app", "FORGED"):
        if await broker.stream(name) is not None:
            await broker.api(f"STREAM.DELETE.{name}")
    await broker.create_stream({"name": "FORGED", "subjects": ["forged.>"]})
    for subject, payload in messages:
        await broker.publish_stored(Outgoing(subject.replace("p.app.audit.", "forged."), payload))
    source = {"name": "FORGED", "subject_transforms": [{"src": "forged.>", "dest": "p.app.audit.>"}]}
    await broker.create_stream({"name": "AUDIT_app", "allow_direct": True, "sources": [source]})

    async def is_full() -> bool:
        info = await broker.stream("AUDIT_app")
        return info is not None and info["state"]["messages"] == len(messages)

    await waited(is_full, "the forged stream is full")


def at(messages: Messages, chain: str, number: int) -> int:
    """The place of a chain's record, counted from 0, among all messages."""
    places = [place for place, (subject, _) in enumerate(messages) if subject.endswith(f".{chain}")]
    return places[number]


def flipped(messages: Messages) -> Messages:
    place = at(messages, "enrich.0", 1)
    subject, payload = messages[place]
    return [*messages[:place], (subject, payload.replace(b"/get", b"/put").replace(b'"get"', b'"put"')),
            *messages[place + 1 :]]  # fmt: skip


def swapped(messages: Messages) -> Messages:
    one, other = at(messages, "enrich.0", 1), at(messages, "enrich.0", 2)
    made = list(messages)
    made[one], made[other] = made[other], made[one]
    return made


def truncated(messages: Messages) -> Messages:
    place = at(messages, "enrich.0", -1)
    return messages[:place] + messages[place + 1 :]


def without_last_seal(messages: Messages) -> Messages:
    place = at(messages, SEALS, -1)
    return messages[:place] + messages[place + 1 :]


FORGERIES: list[tuple[Callable[[Messages], Messages], str]] = [
    (
        flipped,
        r"chain enrich\.0 breaks at entry (5 \(PLACE\): its record does not follow entry 4|"
        r"4: it is not the one that the seal of \d+ entries names)",
    ),
    (swapped, r"chain enrich\.0 breaks at entry 3 \(PLACE\): entries 3 to 4 are missing"),
    (truncated, r"chain enrich\.0 breaks at entry 7: entries 7 to 8 are missing: its position is at 8"),
    (without_last_seal, r"the seal of \d+ entries is missing: the last one there is of \d+"),
]


async def test_a_forged_audit_is_found(processor: Start, key: Path) -> None:
    """Each change of what was written is named by its first bad entry; the same in an export of it."""
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        broker = running.broker
        for number in range(4):
            await write(broker, 0, 2)
            await write(broker, 1, 1)
            if number == 1:
                await sealed(broker, 6)
        await sealed(broker, 12)
        await running.service.stop()
        assert (await report_of(running)).faults == []
        config = load(running.path, {})
        verifier = own_key(config)
        assert verifier is not None
        held = [(s.subject, s.payload) async for s in broker.history("AUDIT_app", ["p.app.audit.>"])]
        for change, what in FORGERIES:
            await forge(broker, change(held))
            faults = (await report_of(running)).faults
            assert re.match(what.replace("PLACE", r"AUDIT_app sequence \d+"), faults[0]), faults
            folder = running.path.parent / change.__name__
            await export(Audits(broker, config), "app", folder, [verifier])
            faults = verify_export(folder, [verifier]).faults
            if change is not without_last_seal:  # that only the app's own stream knows of
                place = r"(chains/enrich\.0\.ndjson|seals\.ndjson:\d+)"
                assert re.match(what.replace("PLACE", place), faults[0]), faults


async def test_chains_go_on_after_the_apps_own_stream_was_lost(processor: Start, key: Path) -> None:
    """Their positions are gone with it: they go on behind what was copied of them, and say so (`rebuilt`)."""
    top = AUDITED.replace("level: calls", "level: runs")
    async with processor(ROUTE, top, echo=ECHO) as running:
        broker = running.broker
        await running.publish("in", {"n": 1}, {"n": 2})
        await running.documents("out", 2)

        async def runs() -> list[dict[str, Any]]:
            audits = Audits(broker, load(running.path, {}))
            return [each async for each in audits.entries(AuditFilter(route="r")) if each["chain"] == "r.0"]

        await waited(runs, "the runs are copied")
        before = len(await runs())
        await broker.api("STREAM.DELETE.P_app")

        async def are_rebuilt() -> list[dict[str, Any]] | None:
            audits = Audits(broker, load(running.path, {}))
            found = [each async for each in audits.entries(AuditFilter(frozenset({"rebuilt"})))]
            return found if any(each["chain"] == "r.0" for each in found) else None

        rebuilt = await waited(are_rebuilt, "the chain goes on", 30)
        assert next(each["n"] for each in rebuilt if each["chain"] == "r.0") == before + 1
        await running.publish("in", {"n": 3})
        await running.documents("out", 3)
        await sealed(broker, before + 3)
        assert (await report_of(running)).faults == []


async def test_the_notary_finds_what_breaks(processor: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A record that does not follow is named in the log, once, and in a metric; sealing goes on (E415)."""
    async with processor(ROUTE, "audit: {level: calls, seal: {entries: 1}}", echo=ECHO) as running:
        await write(running.broker, 0, 2)
        await sealed(running.broker, 3)
        [odd], _ = chained([AuditEntry("user")], "enrich.0", ChainHead(7, bytes(32)), "0" * 16, 1 << 20)
        await running.broker.publish_stored(Outgoing(audit_subject("app", "enrich.0"), odd.encoded()))
        await waited(lambda: running.metric("processor_audit_broken") == 1, "the notary has found it")
        assert re.search(
            r"E415 the audit is broken: chain enrich\.0 breaks at entry 3: entries 3 to 7 are missing"
            r" \(AUDIT_app sequence \d+\)",
            caplog.text,
        )
        await sealed(running.broker, 4)


async def test_an_export_is_verified_and_tells_what_was_changed_in_it(processor: Start, key: Path) -> None:
    """By the command, with the key apart from the folder; each file that is changed is named."""
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        await write(running.broker, 0, 300)
        await write(running.broker, 1, 3)
        await sealed(running.broker, 304)
        folder, vkey = running.path.parent / "export", running.path.parent / "vkey"
        code, out, err = await run_cli(running, "keygen", str(running.path))
        assert code == 0
        assert "is there already" in err
        vkey.write_text(out)
        code, _, err = await run_cli(running, "export", str(running.path), str(folder))
        assert (code, "304 entries of 3 chains are in" in err) == (0, True), err
        code, _, err = await run_cli(running, "export", str(running.path), str(folder))
        assert (code, "E107 is not empty" in err) == (2, True), err
    verify = ("verify", str(folder), "--vkey", str(vkey), "--format", "human")
    code, out, _ = await run_cli(running, *verify)
    assert (code, out.startswith(f"the export {folder} is what was written: 304 entries in 3 chains")) == (
        0,
        True,
    )

    keys = [VerifierKey.read(vkey.read_text())]

    def faults(path: str, change: Callable[[bytes], bytes]) -> list[str]:
        file = folder / path
        before = file.read_bytes()
        file.write_bytes(change(before))
        try:
            return verify_export(folder, keys).faults
        except ConfigError as err:
            return [str(err)]
        finally:
            file.write_bytes(before)

    found = faults("chains/enrich.0.ndjson", lambda raw: raw.replace(b"a.example/42", b"b.example/42"))
    assert found[0] == "chain enrich.0 breaks at entry 300: it is not the one that its position names"
    assert "tile/entries/000 is not the tile that the entries make" in found
    assert faults("tile/1/000.p/1", lambda raw: raw[:-1]) == [
        "tile/1/000.p/1 is not the tile that the entries make"
    ]
    assert faults("checkpoint", lambda raw: raw.replace(b"304", b"305")) == [
        "checkpoint is not the note of the last seal"
    ]
    [odd] = faults("order.ndjson", lambda raw: raw.replace(b"enrich.1", b"enrich/1"))
    assert "order.ndjson E107 has an odd line" in odd
    assert faults("chains/enrich.1.ndjson", lambda raw: raw + raw)[-1] == (
        "chains/enrich.1.ndjson has records that order.ndjson lacks"
    )
    [odd] = faults("heads.json", lambda raw: b"{}")
    assert "heads.json E107 is not that of an export of version 1" in odd
    (folder / "chains" / "x.0.ndjson").write_bytes(b"")
    assert verify_export(folder, keys).faults == ["chains/x.0.ndjson is not in order.ndjson"]
    code, out, _ = await run_cli(running, *verify)
    assert (code, out.splitlines()[0]) == (1, "audit: chains/x.0.ndjson is not in order.ndjson")
    vkey.write_text(vkey.read_text().replace("audit.example.com", "other.example.com"))
    code, _, err = await run_cli(running, *verify)
    assert (code, "E107 the verifier key" in err) == (2, True), err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to verify with")
async def test_what_verify_md_says_is_so(processor: Start, key: Path) -> None:
    """Its lines, run as they are written, verify the signature and print the heads and the root."""
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        await write(running.broker, 0, 9)
        await write(running.broker, 1, 3)
        await sealed(running.broker, 13)
        folder, config = running.path.parent / "export", load(running.path, {})
        verifier = own_key(config)
        assert verifier is not None
        done = await export(Audits(running.broker, config), "app", folder, [verifier])
        assert (done.entries, done.is_whole) == (13, True)

    def output(script: str) -> str:
        ran = subprocess.run(
            ["bash", "-eu", "-c", script], cwd=folder, capture_output=True, text=True, check=False,
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    text = (folder / "VERIFY.md").read_text()
    chains, signature, tree, entry = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    assert output(signature) == "Signature Verified Successfully\n"
    ends = orjson.loads((folder / "heads.json").read_bytes())["ends"]
    assert output(chains).split("\n")[:-1] == [
        f"{name} {n} {head}" for name, (n, head) in sorted(ends.items())
    ]
    assert output(tree) == (folder / "checkpoint").read_text().split("\n")[2] + "\n"
    assert re.fullmatch(r"\d+:[0-9a-f]{64}\n", output(entry))


async def test_verify_md_speaks_of_what_is_in_its_folder(processor: Start, tmp_path: Path) -> None:
    """Before the first seal there is no checkpoint to check, and without a key no signature."""
    config_lines = "audit: {level: runs, seal: {entries: 1000000, seconds: 86400}}"
    async with processor(ROUTE, config_lines, echo=ECHO) as running:
        await write(running.broker, 0, 3)
        config = load(running.path, {})
        done = await export(Audits(running.broker, config), "app", tmp_path / "early", [])
    text = (tmp_path / "early" / "VERIFY.md").read_text()
    assert done.sealed == 0
    assert "There was none yet" in text
    assert "expired" not in text
    for absent in ("checkpoint", "vkey", "key.pem", "tile"):
        assert not (tmp_path / "early" / absent).exists()
    assert "vkey" not in text
    assert "openssl pkeyutl" not in text


GO = shutil.which("go")
# Where Debian's golang-golang-x-mod-dev puts it; elsewhere GOPATH says where its src is.
GO_PATH = os.environ.get("GOPATH") or "/usr/share/gocode"
HAS_MOD = GO is not None and (Path(GO_PATH) / "src/golang.org/x/mod/sumdb/tlog").is_dir()
READ_BY_GO = """
package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	key, _ := os.ReadFile("vkey")
	verifier, err := note.NewVerifier(strings.TrimSpace(string(key)))
	if err != nil {
		panic(err)
	}
	text, _ := os.ReadFile("checkpoint")
	opened, err := note.Open(text, note.VerifierList(verifier))
	if err != nil {
		panic(err)
	}
	lines := strings.Split(opened.Text, "\\n")
	size, _ := strconv.ParseInt(lines[1], 10, 64)
	root, _ := base64.StdEncoding.DecodeString(lines[2])
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			found[i] = stored[index]
		}
		return found, nil
	})
	var entries [][]byte
	for number := int64(0); number*256 < size; number++ {
		path := fmt.Sprintf("tile/entries/%03d", number)
		if width := size - number*256; width < 256 {
			path += fmt.Sprintf(".p/%d", width)
		}
		bundle, err := os.ReadFile(path)
		if err != nil {
			panic(err)
		}
		for len(bundle) > 0 {
			length := int(bundle[0])<<8 | int(bundle[1])
			entries = append(entries, bundle[2:2+length])
			bundle = bundle[2+length:]
		}
	}
	for number, entry := range entries {
		hashes, err := tlog.StoredHashes(int64(number), entry, reader)
		if err != nil {
			panic(err)
		}
		stored = append(stored, hashes...)
	}
	tree, err := tlog.TreeHash(size, reader)
	if err != nil {
		panic(err)
	}
	proof, err := tlog.ProveRecord(size, 6, reader)
	if err != nil {
		panic(err)
	}
	err = tlog.CheckRecord(proof, size, tree, 6, tlog.RecordHash(entries[6]))
	fmt.Println(opened.Sigs[0].Name, size, string(tree[:]) == string(root), err)
}
"""


@pytest.mark.skipif(not HAS_MOD, reason="no go with golang.org/x/mod here to read an export with")
async def test_go_reads_an_export(processor: Start, key: Path) -> None:
    """The packages of Go's checksum database open the checkpoint, and make its root of the entries."""
    assert GO is not None
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        await write(running.broker, 0, 260)
        seal = await sealed(running.broker, 261)
        folder, config = running.path.parent / "export", load(running.path, {})
        verifier = own_key(config)
        assert verifier is not None
        await export(Audits(running.broker, config), "app", folder, [verifier])
    program = running.path.parent / "main.go"
    program.write_text(READ_BY_GO)
    cache = str(running.path.parent / "cache")
    env = {
        "PATH": os.environ["PATH"],
        "GOPATH": GO_PATH,
        "GOCACHE": cache,
        "GO111MODULE": "off",
        "HOME": cache,
    }
    env |= {name: os.environ[name] for name in ("GOROOT",) if name in os.environ}
    ran = subprocess.run(  # noqa: ASYNC221
        [GO, "run", str(program)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert ran.stdout == f"audit.example.com/app {seal.frontier.size} true <nil>\n", ran.stderr


async def test_entries_are_found_by_what_they_are(processor: Start) -> None:
    """By event, actor, route, decision, target and time, oldest first, at most so many of the newest."""
    async with processor(ROUTE, "audit: {level: calls}", echo=ECHO) as running:
        broker = running.broker
        await write(broker, 0, 3)
        await write(broker, 0, 2, event="tool", decision="deny", code="E330", actor="by:ann", target="add")

        audits = Audits(broker, load(running.path, {}))

        async def query(limit: int = 100, **options: str) -> list[str]:
            names = ("event", "actor", "route", "decision", "on", "since", "until")
            which = filter_of(*(options.get(name) for name in names))
            found = [f"{each['chain']} {each['n']}" async for each in audits.entries(which)]
            return found[-limit:]

        tools, calls = [f"enrich.0 {n}" for n in (4, 5)], [f"enrich.0 {n}" for n in (1, 2, 3)]

        async def is_copied() -> bool:
            return await query(route="enrich") == calls + tools

        await waited(is_copied, "what was written can be read")
        assert await query(event="tool,infer") == tools
        assert await query(decision="deny") == tools
        assert await query(actor="by:*") == tools
        assert await query(on="https://*") == calls
        assert await query(event="http", since="1h") == []
        assert await query(event="http", until="2025-12-01T00:00:00Z") == calls
        path = str(running.path)
        code, out, _ = await run_cli(
            running, "query", path, "--format", "human", "--route", "enrich", "--limit", "2"
        )
        assert (code, out.splitlines()[0]) == (
            0, "2025-11-29 23:40:00.000  enrich.0 4  deny E330  tool get add  by:ann"
        )  # fmt: skip
        assert len(out.splitlines()) == 2
        assert await run_cli(running, "query", path, "--event", "infer") == (
            0, "", "there are no such entries\n"
        )  # fmt: skip


async def test_an_edit_is_in_the_chain_of_its_partition(processor: Start, key: Path) -> None:
    """In its own commit, with who, why, whose context and which items; the chain goes on behind it."""
    top = AUDITED.replace("level: calls", "level: runs")
    keyed = ROUTE.replace("subject: in,", "subject: 'in.*',")
    keyed = keyed.replace("output: out", "output: out, key: subject.2, partitions: 4")
    async with processor(keyed, top, echo=ECHO) as running:
        broker = running.broker
        await running.publish("in.a", {"n": 1})
        await running.documents("out", 1)
        edits = ContextEdits(broker, load(running.path, {}).routes["r"])
        await edits.set("a", "seen", 1, Author("ann", "repair"))
        await edits.put({"a": {"seen": b"2"}, "b": {"seen": b"3"}}, Author("ann"))
        await edits.set("a", "seen", 2, Author("ann"))  # which changes nothing
        await running.publish("in.a", {"n": 2})
        await running.documents("out", 2)

        async def enough() -> list[dict[str, Any]] | None:
            audits = Audits(broker, load(running.path, {}))
            which = AuditFilter(frozenset({"control"}), actor="by:ann")
            found = [each async for each in audits.entries(which)]
            return found if len(found) >= 3 else None

        first, *others = await waited(enough, "the edits are in the audit")
        assert (first["verb"], first["on"], first["reason"]) == ("context.set", "context.set:r", "repair")
        assert (first["fate"], first["result"]) == ("committed", "done")
        assert first["data"] == {"key": "a", "changed": ["seen"], "removed": []}
        assert first["chain"] == f"r.{partition_of('a', 4)}"
        assert sorted((each["verb"], each["data"]["key"]) for each in others) == [
            ("context.import", "a"), ("context.import", "b"),
        ]  # fmt: skip
        assert (await report_of(running)).faults == []


async def test_the_audit_is_asked_over_nats(processor: Start, key: Path) -> None:
    """`audit.query` has the newest entries, and `audit.verify` what the command finds."""
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        broker = running.broker
        await write(broker, 0, 3)
        await sealed(broker, 4)

        async def ask(verb: str, **request: Any) -> Any:
            reply = await broker.client.request(f"ctl.app.api.{verb}", orjson.dumps(request), timeout=20)
            return orjson.loads(reply.data)

        found = await ask("audit.query", route="enrich", limit=2)
        assert [each["n"] for each in found["entries"]] == [2, 3]
        assert found["more"] is True
        report = await ask("audit.verify")
        assert (report["faults"], report["checked_signatures"], report["more"]) == ([], True, False)
        assert (report["entries"], report["chains"]) == (4, 2)
        other = VerifierKey("audit.example.com/app", bytes(range(32)))
        assert "is not signed by" in (await ask("audit.verify", vkey=f"{other}\n"))["faults"][0]
        assert (await ask("audit.verify", vkey="x"))["error"]["code"] == "E601"
        assert (await ask("audit.query", until="x"))["error"]["text"].startswith("`until` is 'x'")


async def test_an_audit_that_others_keep_is_read_where_it_is_written(processor: Start) -> None:
    """With `stream: external` what the app's own stream still has is sealed, verified and shown."""
    top = "audit: {level: runs, stream: external, seal: {seconds: 1}}"
    async with processor(ROUTE, top, echo=ECHO) as running:
        await write(running.broker, 0, 3)

        async def is_sealed() -> bool:
            stored = await running.broker.last_of("P_app", [audit_subject("app", SEALS)])
            return bool(stored) and Seal.decode(stored[0].payload).frontier.size >= 4

        await waited(is_sealed, "the entries are sealed")
        assert await running.broker.stream("AUDIT_app") is None
        report = await report_of(running)
        assert (report.faults, report.chains) == ([], 2)


async def test_new_entries_can_be_followed(processor: Start) -> None:
    """`tail` shows what comes from now on, until it is ended."""
    async with processor(ROUTE, "audit: {level: calls}", echo=ECHO) as running:
        await write(running.broker, 0, 1)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", "audit", "tail", str(running.path), "--event", "http"),
            env={"NATS_URL": running.broker.address, "PATH": "/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE,
        )
        try:

            async def has_reader() -> bool:
                names = (await running.broker.api("CONSUMER.NAMES.AUDIT_app"))["consumers"] or []
                return len(names) >= 2  # and the notary's

            await waited(has_reader, "it listens")
            await write(running.broker, 0, 1)
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 10)
            assert orjson.loads(line)["n"] == 2
        finally:
            process.terminate()
            await process.wait()


async def test_a_key_is_made_once(processor: Start, tmp_path: Path) -> None:
    """Readable by its owner only, never overwritten; without a place for it the command says where."""
    path = tmp_path / "config.yaml"
    run = [sys.executable, "-m", "processor", "audit", "keygen", str(path)]
    path.write_text(f"app: app\n{AUDITED}\nroutes:\n  r: {{input: a, code: 'class Runnable: pass'}}\n")
    made, again = (subprocess.run(run, capture_output=True, text=True, check=False) for _ in range(2))  # noqa: ASYNC221
    assert (made.returncode, again.returncode) == (0, 0), made.stderr
    assert (tmp_path / "audit.pem").stat().st_mode & 0o777 == 0o600
    assert made.stdout == again.stdout == f"{own_key(load(path, {}))}\n"
    (tmp_path / "audit.pem").write_text("mine")
    kept = subprocess.run(run, capture_output=True, text=True, check=False)  # noqa: ASYNC221
    assert (kept.returncode, (tmp_path / "audit.pem").read_text()) == (2, "mine")
    path.write_text(path.read_text().replace("key_file: audit.pem", ""))
    unnamed = subprocess.run(run, capture_output=True, text=True, check=False)  # noqa: ASYNC221
    assert (unnamed.returncode, "E105 audit.key_file is missing" in unnamed.stderr) == (2, True)
