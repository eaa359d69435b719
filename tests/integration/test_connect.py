"""Every way to reach and convince a NATS server, and what is said when it does not work."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
import trustme

from processor.config import load
from processor.errors import BrokerError, ProcessorError
from processor.jetstream import Broker, connect_options
from tests.conftest import waited
from tests.running import Serve

CONFIG = """
app: app
nats: {nats}
routes:
  r: {{input: in.*, code: "class Runnable: pass"}}
"""


def jetstream(folder: Path) -> str:
    return f'jetstream {{ store_dir: "{folder}/js" }}\n'


async def connect(folder: Path, nats: str, env: dict[str, str] | None = None) -> Broker:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(nats=nats))
    return await Broker.connect(connect_options(load(path, env or {}).nats), name="test", wait=False)


async def test_user_and_password(serve: Serve, tmp_path: Path) -> None:
    """From the configuration, from a file, or from the environment; wrong ones are refused with E403."""
    url = await serve(jetstream(tmp_path) + 'authorization { user: "ada", password: "secret" }')
    (tmp_path / "password").write_text("secret\n")
    for nats, env in (
        (f"{{url: '{url}', user: ada, password: secret}}", {}),
        (f"{{url: '{url}', user: ada, password_file: password}}", {}),
        (f"{{url: '{url}'}}", {"NATS_USER": "ada", "NATS_PASSWORD": "secret"}),
        (url.replace("//", "//ada:secret@"), {}),
    ):
        await (await connect(tmp_path, nats, env)).close()
    with pytest.raises(BrokerError, match=r"E403 .* refused the credentials") as refused:
        await connect(tmp_path, f"{{url: '{url}', user: ada, password: wrong-canary}}")
    assert "wrong-canary" not in str(refused.value)
    with pytest.raises(BrokerError, match="E403"):
        await connect(tmp_path, url)


async def test_token(serve: Serve, tmp_path: Path) -> None:
    """A token is a way to log in of its own."""
    url = await serve(jetstream(tmp_path) + 'authorization { token: "t0ken" }')
    await (await connect(tmp_path, url, {"NATS_TOKEN": "t0ken"})).close()
    with pytest.raises(BrokerError, match="E403"):
        await connect(tmp_path, url, {"NATS_TOKEN": "other"})


def key_pair(prefix: int) -> tuple[Any, str, str]:
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    pair = nkeys.from_seed(bytearray(seed))
    return pair, bytes(seed).decode(), pair.public_key.decode()


async def test_nkey(serve: Serve, tmp_path: Path) -> None:
    """An nkey seed from a file or from the environment signs the server's nonce."""
    _, seed, public = key_pair(nkeys.PREFIX_BYTE_USER)
    url = await serve(jetstream(tmp_path) + f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    (tmp_path / "seed.nk").write_text(seed)
    await (await connect(tmp_path, f"{{url: '{url}', nkey_seed_file: seed.nk}}")).close()
    await (await connect(tmp_path, url, {"NATS_NKEY_SEED": seed})).close()
    _, other, _ = key_pair(nkeys.PREFIX_BYTE_USER)
    with pytest.raises(BrokerError, match="E403"):
        await connect(tmp_path, url, {"NATS_NKEY_SEED": other})


def jwt(issuer: Any, issuer_key: str, subject: str, name: str, kind: str, claims: dict[str, Any]) -> str:
    """A NATS JWT (ADR-14): header, claims and Ed25519 signature, base64url without padding."""
    body = {"iat": int(time.time()), "iss": issuer_key, "sub": subject, "name": name}
    body["nats"] = {"type": kind, "version": 2, **claims}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    parts = [json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}), json.dumps(body)]
    signed = ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)
    signature = base64.urlsafe_b64encode(issuer.sign(signed.encode())).decode().rstrip("=")
    return f"{signed}.{signature}"


def operator_mode(folder: Path) -> str:
    """The lines of a server in operator mode; `user.creds` in the folder is the file of its one user."""
    operator, _, operator_key = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    account, _, account_key = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    _, _, system_key = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    _, user_seed, user_key = key_pair(nkeys.PREFIX_BYTE_USER)
    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True}
    limits |= {
        "conn": -1,
        "leaf": -1,
        "mem_storage": 1 << 28,
        "disk_storage": 1 << 30,
        "streams": -1,
        "consumer": -1,
    }
    operator_jwt = jwt(operator, operator_key, operator_key, "O", "operator", {"system_account": system_key})
    account_jwt = jwt(operator, operator_key, account_key, "A", "account", {"limits": limits})
    system_limits = {**limits, "mem_storage": 0, "disk_storage": 0}
    system_jwt = jwt(operator, operator_key, system_key, "S", "account", {"limits": system_limits})
    user_limits = {"subs": -1, "data": -1, "payload": -1}
    user_jwt = jwt(account, account_key, user_key, "U", "user", {"pub": {}, "sub": {}, **user_limits})
    (folder / "user.creds").write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_seed}\n------END USER NKEY SEED------\n"
    )
    return (
        f"operator: {operator_jwt}\nsystem_account: {system_key}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account_key}: {account_jwt}, {system_key}: {system_jwt} }}\n"
    )


async def test_credentials_file(serve: Serve, tmp_path: Path) -> None:
    """A creds file, with the user's JWT and seed, works against a server in operator mode."""
    url = await serve(jetstream(tmp_path) + operator_mode(tmp_path))
    await (await connect(tmp_path, url, {"NATS_CREDS": str(tmp_path / "user.creds")})).close()
    with pytest.raises(BrokerError, match="E403"):
        await connect(tmp_path, url)


async def test_a_credentials_file_may_be_damaged_for_a_while(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reconnect that finds it truncated, without a seed, or gone says so once and tries on."""
    caplog.set_level(logging.DEBUG, "processor")
    conf = jetstream(tmp_path) + operator_mode(tmp_path) + f'pid_file: "{tmp_path}/pid"\n'
    url = await serve(conf)
    file = tmp_path / "user.creds"
    whole = file.read_text()
    no_seed, no_such_seed = whole[: whole.index("-----BEGIN USER")], whole.replace("\nSU", "\nSX")
    broker = await connect(tmp_path, url, {"NATS_CREDS": str(file)})
    try:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        file.write_text("")
        await waited(lambda: not broker.is_connected, "the connection is lost")
        await serve(conf)
        for damaged, said in (
            ("", "is no credentials file"),
            (no_seed, "is no credentials file"),
            (no_such_seed, "is no credentials file"),
            (None, "cannot be read: No such file"),
        ):
            file.unlink() if damaged is None else file.write_text(damaged)
            caplog.clear()
            await waited(lambda: "E107" in caplog.text, "it has tried to log in")
            assert said in caplog.text
            assert ("Trying again" in caplog.text) == (damaged in ("", None))
            assert whole.split("\n")[5] not in caplog.text
        file.write_text("")
        with pytest.raises(BrokerError, match=r"E107 is no credentials file"):
            await Broker.connect(broker._options, name="second", wait=False)
        file.write_text(whole)
        await waited(lambda: broker.is_connected, "it is connected again")
        assert await broker.has_jetstream()
    finally:
        await broker.close()


@contextmanager
def authority(folder: Path) -> Iterator[None]:
    """A certificate authority with a server's and a client's certificate, as PEM files."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("127.0.0.1", "client@example.org"):
        issued = ca.issue_cert(name)
        stem = "server" if name == "127.0.0.1" else "client"
        issued.private_key_pem.write_to_path(folder / f"{stem}.key")
        for number, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(folder / f"{stem}.pem", append=number > 0)
    yield


@pytest.mark.parametrize("handshake_first", [False, True])
async def test_tls_with_client_certificates(serve: Serve, tmp_path: Path, handshake_first: bool) -> None:
    """The server's certificate is verified and ours is shown; without ours or without trust: no way in."""
    first = str(handshake_first).lower()
    with authority(tmp_path):
        url = await serve(
            jetstream(tmp_path)
            + f'tls {{ cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key", '
            f'ca_file: "{tmp_path}/ca.pem", verify: true, handshake_first: {first} }}'
        )
        whole = f"{{ca: ca.pem, cert: client.pem, key: client.key, handshake_first: {first}}}"
        await (await connect(tmp_path, f"{{url: '{url}', tls: {whole}}}")).close()
        for part in (f"{{ca: ca.pem, handshake_first: {first}}}", f"{{handshake_first: {first}}}"):
            with pytest.raises(BrokerError, match=r"E40[34]"):
                await connect(tmp_path, f"{{url: '{url}', tls: {part}}}")


async def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """E107 names the keys of the configuration, before anything is connected."""
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ProcessorError, match=r"E107 the certificates of nats.tls cannot be used"):
        await connect(tmp_path, "{url: 'tls://127.0.0.1:1', tls: {ca: ca.pem}}")


async def test_a_server_without_jetstream_is_refused(serve: Serve, tmp_path: Path) -> None:
    """E402 says the version that was found and what is missing."""
    url = await serve("")
    with pytest.raises(BrokerError, match=r"E402 the NATS server 2\.\d+\.\d+ .* has JetStream switched off"):
        await connect(tmp_path, url)


async def test_a_server_that_says_nothing_is_one_that_does_not_answer(tmp_path: Path) -> None:
    """E404 names what went wrong, though the error of a connection that is only silent has no text."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BrokerError, match=rf"E404 no NATS server answers at {url} \(TimeoutError\)"):
            await connect(tmp_path, url)


async def test_an_older_server_is_refused_with_both_versions(nats_server: Any, monkeypatch: Any) -> None:
    """2.11 has no atomic batches; the sentence names the version found and the one needed."""
    monkeypatch.setattr(Broker, "server_version", property(lambda _: "2.11.9"))
    with pytest.raises(BrokerError, match=r"E402 .* is version 2\.11\.9.* needs 2\.12 or later"):
        await Broker.connect({"servers": [nats_server.url]}, name="test", wait=False)


async def test_the_server_that_was_met_is_named_without_credentials(serve: Serve, tmp_path: Path) -> None:
    """Version, address, name and cluster, so that nobody works on another server without noticing."""
    users = "authorization { user: ann, password: hush }"
    url = await serve(f'server_name: east-1\njetstream {{ store_dir: "{tmp_path}/js" }}\n{users}')
    broker = await Broker.connect(
        {"servers": [url.replace("nats://", "nats://ann:hush@")]}, name="test", wait=False
    )
    try:
        version = broker.server_version
        assert broker.server == f"NATS {version} at {url} (server east-1)"
    finally:
        await broker.close()
