# ruff: noqa: T201 - a program that prints what it makes
"""Make a release of one commit: everything that a user needs in order to verify what is installed.

    python deploy/release.py OUT --key release.pem [--commit HEAD] [--osv FILE] [--image NAME@sha256:...]

OUT is a new folder. It gets the wheel (built twice, and refused unless both builds are the same bytes), the
lock file, bills of materials (CycloneDX 1.6, JSON and XML) with the licence of each package,
`vulnerabilities.json`, and the signed statement that names all of these (`processor/release.py`). What is not
in the commit is not in the release. The packages are installed from the lock, with its hashes, into a fresh
environment, which is where their licences are read.

`--osv` is a file of advisories in the OSV format: one record, a list of them, or the archive `all.zip` of an
ecosystem. Nothing is fetched: without it the report says that nobody looked. A vulnerability that concerns a
locked version ends the program with status 1, unless `--accept ID` names it.

The key is made by `openssl genpkey -algorithm ed25519 -out release.pem`; keep it out of the repository.

To refresh the lock: uv pip compile --universal --python-version 3.11 --generate-hashes --no-header
--no-annotate pyproject.toml -o requirements.lock
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nacl.signing
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # it runs from a checkout that nobody installed

from processor import notes, release  # noqa: E402

LOCK = "requirements.lock"
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
# Reads what is installed, in the environment that was made from the lock.
_INVENTORY = """
import importlib.metadata as m, json
print(json.dumps([{
    "name": d.metadata["Name"], "version": d.version, "requires": d.requires or [],
    "expression": d.metadata["License-Expression"] or "", "text": d.metadata["License"] or "",
    "classifiers": [c for c in d.metadata.get_all("Classifier") or [] if c.startswith("License ::")],
} for d in m.distributions()]))
"""
_VERIFY = """# How to verify this release

The key must come from elsewhere than this folder. Its fingerprint is
`{fingerprint}`:

    openssl pkey -pubin -in release.pub -outform DER | sha256sum

With Processor: `processor verify-release . --key release.pub`. Without it, the signature first, then the
files, of which `provenance.json` has the SHA-256 of each:

    {{ printf 'DSSEv1 28 {payload_type} %s ' "$(wc -c < provenance.json)"; cat provenance.json; }} > signed
    openssl pkeyutl -verify -pubin -inkey release.pub -rawin -in signed -sigfile provenance.sig
    jq -r '.subject[] | .digest.sha256 + "  " + .name' provenance.json | sha256sum -c

To install exactly what was tested: `pip install --require-hashes -r requirements.lock`, then
`pip install --no-deps {wheel}`.
"""


class Unreleasable(Exception):
    """Why there is no release."""


@dataclass(frozen=True)
class Package:
    """A locked package as it was installed."""

    name: str  # normalised
    version: str
    licences: tuple[str, ...]
    requires: tuple[str, ...]  # normalised names

    @property
    def purl(self) -> PackageURL:
        return PackageURL("pypi", name=self.name, version=self.version)


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unreleasable(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export(commit: str, folder: Path) -> None:
    """The files of a commit."""
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode:
        raise Unreleasable(f"there is no commit {commit}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


def build_wheel(commit: str, epoch: int, folder: Path) -> Path:
    """The wheel of a commit, built in a folder of its own. Raises Unreleasable."""
    source, out = folder / "source", folder / "out"
    export(commit, source)
    run(sys.executable, source / "docs" / "build.py")  # the pages, which are in the wheel
    # Dates in the archive are the commit's, and no name of a folder or user gets into it.
    env = {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0", "TZ": "UTC"}
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, env=env)
    [wheel] = out.glob("*.whl")
    return wheel


def locked(text: str) -> dict[str, str]:
    """The versions in a lock file, by normalised name."""
    return {canonicalize_name(name): version for name, version in _PINNED.findall(text)}


def install(lock: Path, wheel: Path, folder: Path) -> list[Package]:
    """Install a lock by its hashes and the wheel beside it, and say what is there. Raises Unreleasable."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--require-hashes", "-r", lock)
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    run(python, "-m", "pip", "check")
    run(folder / "bin" / "processor", "--version")
    wanted = locked(lock.read_text())
    found = {
        canonicalize_name(each["name"]): each for each in json.loads(run(python, "-I", "-c", _INVENTORY))
    }
    packages = []
    for name in sorted(wanted.keys() & found.keys()):
        each = found[name]
        requires = {
            canonicalize_name(requirement.name)
            for requirement in map(Requirement, each["requires"])
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        }
        packages.append(
            Package(name, each["version"], _licences(each), tuple(sorted(requires & found.keys())))
        )
    return packages


def _licences(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """An SPDX expression where there is one, else what classifiers say, else the first line of the text."""
    if metadata["expression"]:
        return (metadata["expression"],)
    if metadata["classifiers"]:
        return tuple(each.rpartition(" :: ")[2] for each in metadata["classifiers"])
    return tuple(line for line in metadata["text"].strip().splitlines()[:1] if line)


def bill_of_materials(wheel: Path, packages: Sequence[Package], lock: Path, made: datetime) -> Bom:
    """What is in an installation, in CycloneDX; of the same commit it is always the same."""
    factory = LicenseFactory()

    def licences(names: Iterable[str]) -> LicenseRepository:
        made_of = [factory.make_from_string(name) for name in names]
        return LicenseRepository(made_of)

    name, version = wheel.name.split("-")[:2]
    root = Component(
        name=name,
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=f"{name}=={version}",
        purl=PackageURL("pypi", name=name, version=version),
        licenses=licences(["Apache-2.0"]),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256(wheel))],
    )
    components = {
        package.name: Component(
            name=package.name,
            version=package.version,
            type=ComponentType.LIBRARY,
            bom_ref=str(package.purl),
            purl=package.purl,
            licenses=licences(package.licences),
        )
        for package in packages
    }
    bom = Bom(
        components=components.values(),
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"{sha256(wheel)}{sha256(lock)}"),
        metadata=BomMetaData(
            component=root,
            timestamp=made,
            properties=[Property(name="processor:lock:sha256", value=sha256(lock))],
        ),
    )
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        declared = re.findall(r"^Requires-Dist: ([^;\n]+)$", archive.read(metadata).decode(), re.MULTILINE)
    direct = {canonicalize_name(Requirement(each).name) for each in declared}
    bom.register_dependency(root, [components[name] for name in sorted(direct & components.keys())])
    for package in packages:
        below = [components[name] for name in package.requires if name in components]
        bom.register_dependency(components[package.name], below)
    return bom


def advisories(path: Path) -> Iterator[dict[str, Any]]:
    """The OSV records of a file: one, a list, or an archive of files. Raises Unreleasable."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".json"):
                        yield json.loads(archive.read(name))
            return
        document = json.loads(path.read_text())
    except (OSError, ValueError) as err:
        raise Unreleasable(f"{path} is not a file of OSV advisories: {err}") from err
    yield from document if isinstance(document, list) else [document]


def is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    """Whether a version is among the ones that an entry of an advisory names (OSV schema, `affected`)."""
    if version in affected.get("versions", ()):
        return True
    ours = Version(version)
    for each in affected.get("ranges", ()):
        if each.get("type") != "ECOSYSTEM":
            continue
        # Events in order of their versions: each says whether what lies from there on is vulnerable.
        is_in = False
        events = [(word, text) for event in each.get("events", ()) for word, text in event.items()]
        for word, text in sorted(events, key=lambda event: (_version(event[1]), event[0])):
            at = _version(text)
            if word == "introduced" and ours >= at:
                is_in = True
            elif (word == "fixed" and ours >= at) or (word == "last_affected" and ours > at):
                is_in = False
        if is_in:
            return True
    return False


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version(
            "0"
        )  # `introduced: 0` is every version, and what nobody can order is no reason to be silent


def vulnerabilities(
    versions: Mapping[str, str], records: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What OSV records say about these versions, by package and id."""
    found = []
    for record in records:
        if record.get("withdrawn"):
            continue
        for affected in record.get("affected", ()):
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") != "PyPI" or name not in versions:
                continue
            if is_affected(versions[name], affected):
                fixed = [
                    event["fixed"]
                    for each in affected.get("ranges", ())
                    for event in each.get("events", ())
                    if "fixed" in event
                ]
                found.append(
                    {
                        "package": name,
                        "version": versions[name],
                        "id": record["id"],
                        "aliases": sorted(record.get("aliases", ())),
                        "summary": record.get("summary", ""),
                        "fixed": fixed,
                    }
                )
    return sorted(found, key=lambda each: (each["package"], each["id"]))


def statement(files: Iterable[Path], commit: str, lock: Path, image: str) -> bytes:
    """The in-toto statement: what there is, and what it was made from."""
    sources: list[dict[str, Any]] = [
        {"name": "source", "digest": {"gitCommit": commit}},
        {"name": LOCK, "digest": {"sha256": sha256(lock)}},
    ]
    sources += [
        {"uri": str(PackageURL("pypi", name=name, version=version)), "name": name, "digest": {}}
        for name, version in sorted(locked(lock.read_text()).items())
    ]
    for each in sources:
        if not each["digest"]:
            del each["digest"]  # the lock, whose digest is above, has those of every file
    if image:
        name, _, digest = image.partition("@sha256:")
        sources.append({"name": name, "digest": {"sha256": digest}})
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": path.name, "digest": {"sha256": sha256(path)}}
            for path in sorted(files, key=lambda p: p.name)
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "processor/deploy/release.py",
                "externalParameters": {"commit": commit, "image": image},
                "internalParameters": {"python": ".".join(map(str, sys.version_info[:3]))},
                "resolvedDependencies": sources,
            },
            "runDetails": {"builder": {"id": "processor/deploy/release.py"}},
        },
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def make(
    out: Path,
    key: Path,
    commit: str = "HEAD",
    osv: Path | None = None,
    image: str = "",
    accepted: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Fill a new folder with the release of a commit; the vulnerabilities that were not accepted.

    Raises Unreleasable, and ProcessorError E509 for a key that cannot be used.
    """
    if image and not re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", image):
        raise Unreleasable(f"--image {image}: name a base image by its digest, NAME@sha256:<64 hex digits>")
    signer = nacl.signing.SigningKey(release.read_private_key(key.read_bytes()))
    public = bytes(signer.verify_key)
    commit = run("git", "rev-parse", "--verify", f"{commit}^{{commit}}", cwd=ROOT).strip()
    epoch = int(run("git", "show", "-s", "--format=%ct", commit, cwd=ROOT))
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        built, again = (build_wheel(commit, epoch, work / name) for name in ("first", "second"))
        if sha256(built) != sha256(again):
            raise Unreleasable(f"two builds of {commit} differ: {sha256(built)} and {sha256(again)}")
        wheel, lock = out / built.name, out / LOCK
        wheel.write_bytes(built.read_bytes())
        lock.write_bytes((work / "first" / "source" / LOCK).read_bytes())
        packages = install(lock, wheel, work / "installed")
    bom = bill_of_materials(wheel, packages, lock, datetime.fromtimestamp(epoch, UTC))
    for form, name in ((OutputFormat.JSON, "sbom.cdx.json"), (OutputFormat.XML, "sbom.cdx.xml")):
        outputter = make_outputter(bom, form, SchemaVersion.V1_6)
        (out / name).write_text(outputter.output_as_string(indent=2) + "\n")
    found = vulnerabilities(locked(lock.read_text()), advisories(osv)) if osv else []
    report = {"checked": osv is not None, "vulnerabilities": found, "accepted": sorted(accepted)}
    if osv:
        report["advisories"] = {"sha256": sha256(osv)}
    (out / "vulnerabilities.json").write_text(json.dumps(report, indent=2) + "\n")
    signed = statement(list(out.iterdir()), commit, lock, image)
    signature = signer.sign(release.signed_bytes(signed)).signature
    (out / release.STATEMENT).write_bytes(signed)
    (out / release.SIGNATURE).write_bytes(signature)
    (out / release.ENVELOPE).write_bytes(release.envelope(signed, signature, public))
    (out / release.KEY).write_bytes(notes.public_pem(public))
    text = _VERIFY.format(
        fingerprint=notes.fingerprint(public), payload_type=release.PAYLOAD_TYPE, wheel=wheel.name
    )
    (out / release.INSTRUCTIONS).write_text(text)
    release.verify(out, notes.public_pem(public))
    return [each for each in found if each["id"] not in accepted and not {*each["aliases"]} & {*accepted}]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    parser.add_argument("--key", type=Path, required=True, help="the private key that signs, PEM")
    parser.add_argument("--commit", default="HEAD", help="what is released")
    parser.add_argument("--osv", type=Path, help="advisories in the OSV format")
    parser.add_argument("--image", default="", help="the base image by digest, NAME@sha256:...")
    parser.add_argument(
        "--accept", action="append", default=[], metavar="ID", help="a vulnerability to accept"
    )
    arguments = parser.parse_args()
    try:
        left = make(
            arguments.out, arguments.key, arguments.commit, arguments.osv, arguments.image, arguments.accept
        )
    except (Unreleasable, release.ProcessorError, OSError) as err:
        print(err, file=sys.stderr)
        return 1
    for path in sorted(arguments.out.iterdir()):
        print(f"{sha256(path)}  {path.name}")
    if arguments.osv is None:
        print("vulnerabilities: nobody looked; give a file of advisories with --osv", file=sys.stderr)
    for each in left:
        fixed = f", fixed in {', '.join(each['fixed'])}" if each["fixed"] else ""
        print(f"{each['package']} {each['version']}: {each['id']} {each['summary']}{fixed}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
