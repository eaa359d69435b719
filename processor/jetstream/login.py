"""How a connection logs in: the options of the client, by the configuration, and secrets read from files."""

from __future__ import annotations

import collections
import ssl
from typing import Any

import nats.errors

from processor.config import Nats, read_login
from processor.errors import ProcessorError


def connect_options(nats: Nats) -> dict[str, Any]:
    """What `Broker.connect` needs to reach and convince the configured server. Reads secret files now.

    Raises ProcessorError E107 for a file that cannot be read.
    """
    own = nats.credentials
    options: dict[str, Any] = {"servers": list(nats.url)}
    if own.creds_file:
        options["user_credentials"] = _CredsFile(own.creds_file)
    elif own.nkey_seed:
        options["nkeys_seed_str"] = own.nkey_seed
    elif own.token:
        options["token"] = own.token
    elif own.user:
        options |= {"user": own.user, "password": own.password}
    if nats.tls is not None or any(url.startswith("tls://") for url in nats.url):
        tls = nats.tls
        try:
            context = ssl.create_default_context(cafile=tls.ca if tls else None)
            if tls and tls.cert:
                context.load_cert_chain(tls.cert, tls.key)
        except (OSError, ssl.SSLError) as err:
            raise ProcessorError(
                "E107",
                f"the certificates of nats.tls cannot be used: {err}",
                remedy="nats.tls.ca, cert and key are PEM files that this user must be able to read.",
            ) from err
        options |= {"tls": context, "tls_handshake_first": bool(tls and tls.handshake_first)}
    return options


class BadLogin(nats.errors.Error):
    """The credentials file is not one now. An error of theirs, or a reconnect would end with it for good."""


class _CredsFile(collections.UserString):
    """A credentials file for nats-py, which asks for its content whenever it connects.

    It is read here and checked each time: nats-py itself reads a file without a JWT for ever, and with it
    stands still whatever runs in the event loop.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def data(self) -> str:  # type: ignore[override]
        try:
            jwt, seed = read_login(self._path)
        except ProcessorError as err:
            raise BadLogin(str(err)) from err
        return f"BEGIN NATS USER JWT\n{jwt}\nBEGIN USER NKEY SEED\n{seed}\n"

    def __bool__(self) -> bool:
        return True  # without reading it

    def __repr__(self) -> str:
        return f"<credentials in {self._path}>"
