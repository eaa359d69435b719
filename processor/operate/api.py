"""The requests over NATS: the verbs as a micro service, on the subjects `ctl.<app>.api.<verb>`.

A request is read, its verb performed, and the answer sent; what a verb does is written in `verbs`.
"""

from __future__ import annotations

import logging
from dataclasses import fields

from processor import __version__
from processor.config import Config
from processor.errors import Refusal
from processor.jetstream import Broker, Endpoint, MicroService
from processor.operate.forms import read_request, type_text
from processor.operate.verbs import VERBS, OperatedApp, Verb, perform
from processor.subject import api_subject

log = logging.getLogger("processor")

# What the server and a client's headers need of a message beside the answer.
_SPARE_BYTES = 4096


class OperateApi:
    """Answers the requests to one processor, from `start` to `stop`; `config` is replaced at a reload."""

    def __init__(self, broker: Broker, config: Config, member: str) -> None:
        self.config = config
        self._broker = broker
        self._member = member
        self._service: MicroService | None = None

    async def start(self) -> None:
        """Answer from now on. What the server does not permit is logged in one line; the rest works."""
        app = self.config.app
        self._service = MicroService(
            self._broker,
            f"processor-{app}",
            self._member,
            __version__,
            f"Processor, app {app}",
            {"app": app},
            [self._endpoint(verb) for verb in VERBS],
            Refusal("E603", "too many requests wait here already; ask again in a moment"),
            _fault,
        )
        denied = await self._service.start()
        if denied:
            log.warning(
                "E403 this user may not subscribe to %s: such requests are not answered, everything else "
                "runs. Allow it, or set `control: off`",
                f"{', '.join(denied[:3])}{f' and {len(denied) - 3} more' if len(denied) > 3 else ''}",
                extra={"code": "E403"},
            )  # fmt: skip

    async def stop(self) -> None:
        """Take no more requests and finish those in hand."""
        if self._service is not None:
            await self._service.stop()

    def _endpoint(self, verb: Verb) -> Endpoint:
        async def answer(payload: bytes) -> bytes:
            room_bytes = self._broker.max_payload - _SPARE_BYTES
            app = OperatedApp(self._broker, self.config, self._member, room_bytes)
            return await perform(verb, app, read_request(verb.request, payload))

        wants = ", ".join(f"{each.name}: {type_text(each)}" for each in fields(verb.request))
        summary = f"{verb.summary} {{{wants}}}"
        return Endpoint(verb.name.replace(".", "-"), api_subject(self.config.app, verb.name), summary, answer)


def _fault(err: BaseException) -> Refusal:
    log.error("an unexpected error in a request; please report it", exc_info=err)
    return Refusal("E604", f"an unexpected error: {type(err).__name__}; the log has it")
