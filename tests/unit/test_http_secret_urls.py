"""URLs that begin with a secret: the server is the one that the secret names, and nobody reads which."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from processor.address import Binding
from processor.capability.monitor import Mandate, RunScope
from processor.capability.registry import HostCalls
from processor.capability.secrets import BASE_CHARS
from processor.context.late import Intent
from processor.errors import ProcessorError
from processor.policy import load
from processor.reach import BoundSecret, Outbound, Reach
from processor.route import RouteAudit
from tests.web import Asked, RouteCalls, Web, answer, call, outside, refusal, serving, to

PATH = "/hooks/T0-CANARY"
NAMES = {"hooks.example": "127.0.0.1", "evil.example": "127.0.0.1"}


def hooks(web: Web, path: str = PATH) -> str:
    return f"http://hooks.example:{web.port}{path}"


def reaching(web: Web, value: str, *hosts: str, bound: tuple[str, ...] = ()) -> Any:
    """A route whose secret `k` has that value; it is bound to its own server, which is allowed."""
    own = f"http://hooks.example:{web.port}"
    allowed = ["hooks.example:" + str(web.port), web.host, *hosts]
    return outside(*allowed, names=NAMES, secrets={"k": (value, list(bound or (own,)))})


async def asked(calls: RouteCalls, rest: str = "", method: str = "POST", **args: Any) -> Any:
    return await calls.perform("requests", call(method, calls.secrets["k"] + rest, **args))


@pytest.mark.parametrize(
    ("rest", "target"),
    [
        ("", PATH), ("/process", f"{PATH}/process"), ("?a=b", f"{PATH}?a=b"), ("/ü?x", f"{PATH}/%C3%BC?x"),
    ],
)  # fmt: skip
async def test_a_url_may_begin_with_a_secret(rest: str, target: str) -> None:
    """What follows is put behind its value; the URL of the answer has the mark, and can be used again."""
    async with serving() as web, reaching(web, hooks(web)) as calls:
        said = await asked(calls, rest, body=b"x")
        assert (web.asked[0].target, web.asked[0].headers["host"]) == (target, f"hooks.example:{web.port}")
        assert said.value["status"] == 200
        assert said.value["url"].startswith(calls.secrets["k"])
        assert "CANARY" not in str(said.value)
        assert "CANARY" not in said.body.decode()  # where the server repeats it
        await calls.perform("requests", call("GET", said.value["url"]))
        assert web.asked[1].target == target


@pytest.mark.parametrize(
    "rest",
    ["@evil.example/", ".evil.example/", ":80/", "x", "#f", "\\evil.example", "%2e", " ", "\n", "[", "é"],
)
async def test_nothing_behind_a_secret_changes_its_server(rest: str) -> None:
    """Only a path or a query may follow: what else there is could become a part of the host (E326)."""
    async with serving() as web, reaching(web, hooks(web), "*") as calls:
        text = await refusal("E326", asked(calls, rest))
        assert "behind the secret 'k'" in text
        assert not web.connections
        assert "CANARY" not in text


@pytest.mark.parametrize(
    "url",
    [
        "http://{mark}/", "http://u:{mark}@hooks.example/", "http://{mark}@hooks.example/", "http://a.{mark}/",
        "http://hooks.example:{mark}/", "{mark}/{mark}", "{mark}/a/{mark}?b", " {mark}/x", "//{mark}/x",
        "http:{mark}", "http://hooks.example/{mark}",
    ],
)  # fmt: skip
async def test_a_mark_in_another_place_of_a_url_is_refused(url: str) -> None:
    """User, host, port and path are no places for one, nor is a second one."""
    async with serving() as web, reaching(web, hooks(web), "*") as calls:
        with pytest.raises(ProcessorError, match=r"E326|E317") as refused:
            await calls.perform("requests", call("GET", url.replace("{mark}", calls.secrets["k"])))
        assert not web.connections
        assert "CANARY" not in str(refused.value)


async def test_a_fragment_is_sent_to_nobody() -> None:
    """As of any URL: one with a mark in it is refused where that is in the path, and else left out."""
    async with serving() as web, reaching(web, hooks(web)) as calls:
        with pytest.raises(ProcessorError, match="E326"):
            await asked(calls, f"/a#{calls.secrets['k']}")
        await asked(calls, "/a?b=c#fragment")
        assert [each.target for each in web.asked] == [f"{PATH}/a?b=c"]


@pytest.mark.parametrize(
    "value",
    [
        "http://user:CANARY@hooks.example/", "http://hooks.example/CANARY\n", "CANARY-no-url", "ftp://h/CANARY",
        "http://hooks.example/?CANARY", "http://hooks.example/#CANARY", "//hooks.example/CANARY",
        "http://hooks.example:99999/CANARY", "http://hooks.example/" + "CANARY" * BASE_CHARS,
    ],
)  # fmt: skip
async def test_a_secret_that_is_no_beginning_of_a_url_is_not_quoted(value: str) -> None:
    """One with a user, a line break, a query or another scheme is for headers, and the refusal says why."""
    async with serving() as web, outside("*", names=NAMES, secrets={"k": (value, ["*.example"])}) as calls:
        text = await refusal("E326", asked(calls, "/process"))
        assert text.startswith("requests E326 a URL cannot begin with the secret 'k'. Its value has to be")
        assert not web.connections
        assert "CANARY" not in text


async def test_its_server_has_to_be_listed() -> None:
    """Among the hosts of the secret (E326), and among those of the route (E325); neither text names it."""
    async with serving() as web:
        async with reaching(web, hooks(web), bound=("http://other.example",)) as calls:
            text = await refusal("E326", asked(calls, "/x"))
            assert "the secret 'k' may not be sent to the server that it names" in text
            assert "hooks" not in text
        own = f"http://hooks.example:{web.port}"
        async with outside("other.example", names=NAMES, secrets={"k": (hooks(web), [own])}) as calls:
            text = await refusal("E325", asked(calls, "/x"))
            assert "secret.k is not an allowed host. Add the server that the secret 'k' names to" in text
            assert "hooks" not in text
        host = f"hooks.example:{web.port}"
        async with outside(host, names=NAMES, secrets={"k": (hooks(web), [own])}) as calls:
            text = await refusal("E325", asked(calls, "/x"))  # its address is a private one
            assert "secret.k is at 127.0.0.1" in text
            assert "hooks" not in text
        assert not web.connections


async def test_what_goes_wrong_on_the_way_does_not_name_the_server() -> None:
    """Nor do the sizes that are counted tell how long the secret is."""
    async with serving(lambda asked: None) as web, reaching(web, hooks(web)) as calls:
        said = await asked(calls, "/x", timeout=0.1)
        assert said.value["text"] == "secret.k: no complete answer within 0.1 s"
    async with reaching(web, hooks(web)) as calls:
        said = await asked(calls, "/x")
        assert said.value["failed"] == "connection"
        assert said.value["text"].startswith("secret.k: ")
    own = f"http://hooks.example:{web.port}"
    sizes = []
    for path in ("/a", PATH * 3):
        secrets = {"k": (own + path, [own])}
        host = f"hooks.example:{web.port}"
        async with outside(host, names=NAMES, secrets=secrets, request_bytes=40) as calls:
            sizes.append(await refusal("E323", asked(calls, "/x")))
    assert sizes[0] == sizes[1]


async def test_a_redirect_does_not_take_it_along() -> None:
    """To the same server it is followed; one that repeats the secret to another server is refused."""

    def say(asked: Asked) -> bytes:
        if asked.target.endswith("/same"):
            return to("/elsewhere")
        if asked.target.endswith("/away"):
            return to(f"http://evil.example:{web.port}/?was={PATH}")
        return answer(asked.target.encode())

    async with (
        serving(say) as web,
        reaching(web, hooks(web), f"evil.example:{web.port}", "127.0.0.1") as calls,
    ):
        said = await asked(calls, "/same")
        assert said.body == b"/elsewhere"
        assert said.value["url"] == "secret.k/elsewhere"
        text = await refusal("E326", asked(calls, "/away"))
        assert "would take a secret with it" in text
        assert "CANARY" not in text


async def test_a_policy_and_the_audit_see_the_server_by_the_name_of_the_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A policy decides about the real URL and the use of the secret; what is kept and logged has its name."""
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "policy.toml"

    async def announce(partition: int, intent: Intent) -> None:
        assert "CANARY" not in intent.target

    async with serving() as web:
        url = hooks(web)
        secret = BoundSecret("k", url, (Binding.parse(f"http://hooks.example:{web.port}"),))
        reach = Reach("here", Outbound((f"hooks.example:{web.port}", web.host)), secrets=(secret,))

        async def resolve(host: str, port: int) -> list[str]:
            return [NAMES[host]]

        entries = []
        for allowed in (f"{url}/*", "https://other.example/*"):
            file.write_text(
                f'[[capability]]\nname = "http"\nresource = "{allowed}"\nmethods = ["post"]\n'
                '[[capability]]\nname = "secret"\nresource = "k"\nmethods = ["use"]\n'
            )
            calls = HostCalls(resolve)
            governor = calls.for_route(
                reach, Mandate("r", load([str(file)]), audit=RouteAudit("calls", "all"))
            )
            lane = governor.lane()
            lane.begin(RunScope(0, (1, 1), announce))
            asking = lane.perform("requests", call("POST", governor.secrets["k"] + "/process"))
            if "other" in allowed:
                text = await refusal("E330", asking)
                assert "secret.k/process" in text
                assert "hooks" not in text
            else:
                assert (await asking).value["status"] == 200
            entries += lane.end()
            await calls.close()
    assert [(entry.decision, entry.target) for entry in entries] == [
        ("allow", "secret.k/process"), ("deny", "secret.k/process"),
    ]  # fmt: skip
    assert entries[0].secrets == ("k",)
    assert "hooks.example" not in caplog.text
