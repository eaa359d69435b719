"""A release that is made as a maintainer makes one, and verified as a user does."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import nacl.signing
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from processor import release

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_of_processor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


maker = load(ROOT / "deploy" / "release.py")


def private_pem(path: Path) -> Path:
    """A new key, as `openssl genpkey -algorithm ed25519` writes it."""
    import base64

    der = bytes.fromhex("302e020100300506032b657004220420") + bytes(nacl.signing.SigningKey.generate())
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\n%b\n-----END PRIVATE KEY-----\n" % base64.b64encode(der))
    return path


ADVISORIES = [
    {
        "id": "OSV-IN-RANGE",
        "aliases": ["CVE-1"],
        "summary": "concerns every version so far",
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": "OrJson"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}],
            }
        ],
    },
    {
        "id": "OSV-ELSEWHERE",
        "affected": [
            {
                "package": {"ecosystem": "npm", "name": "orjson"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}],
            }
        ],
    },
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the last commit, with advisories of which one is accepted."""
    if not (ROOT / ".git").exists():
        pytest.skip("a release is made of a commit, and this is no git checkout")
    pytest.importorskip("zensical", reason="the extra `docs`, which builds the pages, is not installed")
    folder = tmp_path_factory.mktemp("release")
    (folder / "osv.json").write_text(json.dumps(ADVISORIES))
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "deploy" / "release.py"), str(folder / "out"),
            "--key", str(private_pem(folder / "release.pem")), "--osv", str(folder / "osv.json"),
            "--accept", "CVE-1", "--image", f"python@sha256:{'a' * 64}",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


def verified(folder: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "processor", "verify-release", str(folder), *map(str, options)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_a_release_is_verified(made: Path) -> None:
    """Of one commit two wheels are the same, the lock can be installed, and the folder verifies."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    done = verified(made, "--key", made / release.KEY)
    assert done.returncode == 0, done.stderr
    assert f"made from commit {commit}" in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines() if "is what was signed" in line} == {
        path.name for path in made.iterdir()
    } - release.UNNAMED


def test_a_release_is_verified_by_openssl(made: Path, tmp_path: Path) -> None:
    """The lines of VERIFY.md say that the signature is good, and of another statement that it is not."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    commands = re.findall(r"^    (.*)$", (made / release.INSTRUCTIONS).read_text(), re.MULTILINE)
    folder = tmp_path / "release"
    shutil.copytree(made, folder)
    signature = " && ".join(commands[1:3])
    done = subprocess.run(["bash", "-c", signature], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Signature Verified Successfully" in done.stdout
    fingerprint = subprocess.run(["bash", "-c", commands[0]], cwd=folder, capture_output=True, text=True)
    assert fingerprint.stdout.split()[0] in (made / release.INSTRUCTIONS).read_text()
    (folder / release.STATEMENT).write_bytes((folder / release.STATEMENT).read_bytes() + b" ")
    done = subprocess.run(["bash", "-c", signature], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode != 0


def changed(name: str) -> Callable[[Path], None]:
    """One bit of a file is another."""

    def change(folder: Path) -> None:
        [path] = folder.glob(name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return change


def removed(folder: Path) -> None:
    (folder / "requirements.lock").unlink()


def added(folder: Path) -> None:
    (folder / "processor-0.2.0-py3-none-any.whl").write_bytes(b"")


def signed_by_another(folder: Path) -> None:
    """The whole statement is replaced by one that somebody else signed."""
    signer = nacl.signing.SigningKey.generate()
    raw = (folder / release.STATEMENT).read_bytes()
    signature = signer.sign(release.signed_bytes(raw)).signature
    (folder / release.SIGNATURE).write_bytes(signature)
    (folder / release.ENVELOPE).write_bytes(release.envelope(raw, signature, bytes(signer.verify_key)))


@pytest.mark.parametrize(
    "spoil, says",
    [
        (changed("*.whl"), r"\.whl was changed: its SHA-256 is"),
        (changed("requirements.lock"), r"requirements\.lock was changed"),
        (changed("sbom.cdx.json"), r"sbom\.cdx\.json was changed"),
        (changed("vulnerabilities.json"), r"vulnerabilities\.json was changed"),
        (changed(release.STATEMENT), "is not a signature of"),
        (changed(release.SIGNATURE), "is not a signature of"),
        (changed(release.ENVELOPE), "is not a signature of"),
        (removed, r"requirements\.lock is missing"),
        (added, "is not part of the release"),
        (signed_by_another, "is not a signature of"),
    ],
)
def test_a_changed_byte_is_found(
    spoil: Callable[[Path], None], says: str, made: Path, tmp_path: Path
) -> None:
    """Whatever is changed, missing or added is named, and the exit code is 1."""
    folder = tmp_path / "release"
    shutil.copytree(made, folder)
    spoil(folder)
    done = verified(folder, "--key", made / release.KEY)
    assert done.returncode == 1
    assert re.search(f"E509 .*{says}", done.stderr), done.stderr


def test_a_key_that_is_none_is_refused(made: Path, tmp_path: Path) -> None:
    """A private key, another file or none at all in place of the public key is an error with a remedy."""
    (tmp_path / "text").write_text("not a key")
    for key in (private_pem(tmp_path / "private.pem"), tmp_path / "text"):
        done = verified(made, "--key", key)
        assert done.returncode == 1
        assert "is not the public key of Ed25519 in PEM" in done.stderr
        assert "openssl genpkey" in done.stderr
    assert "E509" in verified(made, "--key", tmp_path / "nothing").stderr
    assert verified(made).stdout.endswith("compare its fingerprint with one from elsewhere.\n")


def test_the_bills_of_materials_name_what_is_locked(made: Path) -> None:
    """Both forms have the packages of the lock, each with its version and a licence, and our wheel."""
    bill = json.loads((made / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    of_json = {each["name"]: each for each in bill["components"]}
    versions = maker.locked(LOCK)
    assert {name: each["version"] for name, each in of_json.items()} == {
        name: version for name, version in versions.items() if name in of_json
    }
    assert {canonicalize_name(Requirement(each).name) for each in PROJECT["dependencies"]} <= of_json.keys()
    assert [name for name, each in of_json.items() if not each.get("licenses")] == []
    assert {each["purl"] for each in of_json.values()} <= {each["ref"] for each in bill["dependencies"]}
    [wheel] = made.glob("*.whl")
    assert bill["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": maker.sha256(wheel)}]
    space = {"b": "http://cyclonedx.org/schema/bom/1.6"}
    tree = ElementTree.parse(made / "sbom.cdx.xml")
    of_xml = tree.findall("b:components/b:component", space)
    assert {each.findtext("b:name", "", space) for each in of_xml} == of_json.keys()


def test_the_statement_says_what_it_was_made_from(made: Path) -> None:
    """An in-toto statement with the commit, the lock, and the base image by digest."""
    statement = json.loads((made / release.STATEMENT).read_text())
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    sources = {
        each["name"]: each for each in statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    assert sources["requirements.lock"]["digest"] == {"sha256": maker.sha256(made / "requirements.lock")}
    assert sources["python"]["digest"] == {"sha256": "a" * 64}
    assert {*maker.locked(LOCK)} <= sources.keys()


def test_the_report_has_what_concerns_the_lock(made: Path) -> None:
    """Of the advisories, the one for a locked version is in the report, and that it was accepted."""
    report = json.loads((made / "vulnerabilities.json").read_text())
    assert [each["id"] for each in report["vulnerabilities"]] == ["OSV-IN-RANGE"]
    assert report["vulnerabilities"][0]["fixed"] == ["999"]
    assert (report["checked"], report["accepted"]) == (True, ["CVE-1"])


@pytest.mark.parametrize(
    "events, versions, is_in",
    [
        ([{"introduced": "0"}], [], True),
        ([{"introduced": "0"}, {"fixed": "1.5"}], [], False),
        ([{"introduced": "0"}, {"fixed": "1.5.1"}], [], True),
        ([{"introduced": "1.5"}, {"last_affected": "1.5"}], [], True),
        ([{"introduced": "0"}, {"last_affected": "1.4"}], [], False),
        ([{"introduced": "1.6"}], [], False),
        ([{"fixed": "1.2"}, {"introduced": "0"}, {"introduced": "1.4"}, {"fixed": "2"}], [], True),
        ([], ["1.5"], True),
        ([], ["1.5.0"], False),  # as it is written there: the schema compares texts
    ],
)
def test_an_advisory_concerns_the_versions_it_names(
    events: list[dict[str, str]], versions: list[str], is_in: bool
) -> None:
    """Ranges by their events in any order, and versions by name, as the OSV schema has them."""
    affected = {"ranges": [{"type": "ECOSYSTEM", "events": events}], "versions": versions}
    assert maker.is_affected("1.5", affected) is is_in


def test_advisories_are_read_from_an_archive(tmp_path: Path) -> None:
    """One record, a list, and the archive of an ecosystem say the same; a withdrawn one says nothing."""
    withdrawn: dict[str, Any] = {**ADVISORIES[0], "id": "OSV-GONE", "withdrawn": "2026-01-01T00:00:00Z"}
    (tmp_path / "list.json").write_text(json.dumps([*ADVISORIES, withdrawn]))
    (tmp_path / "one.json").write_text(json.dumps(ADVISORIES[0]))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for record in (*ADVISORIES, withdrawn):
            archive.writestr(f"{record['id']}.json", json.dumps(record))
    found = [
        [each["id"] for each in maker.vulnerabilities({"orjson": "3.1"}, maker.advisories(tmp_path / name))]
        for name in ("list.json", "one.json", "all.zip")
    ]
    assert found == [["OSV-IN-RANGE"]] * 3
    (tmp_path / "torn.json").write_text("[")
    with pytest.raises(maker.Unreleasable, match=r"torn\.json is not a file of OSV advisories"):
        list(maker.advisories(tmp_path / "torn.json"))


def test_the_lock_has_what_the_project_asks_for() -> None:
    """Every dependency is locked with hashes, at a version that the project accepts."""
    versions = maker.locked(LOCK)
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text
    entries = re.split(r"^(?=\S)", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == len(versions)
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
