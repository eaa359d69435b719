"""The command line: every verb with its options, and how its errors end the process.

A verb here is its signature and its help; the work is in the modules beside this one, which are imported when
the verb runs, so that `--help` and the first output of `dev` are not kept waiting. The help of a verb is its
docstring, and ends with examples. `VERBS` is the whole list.

Errors of ours are one line each and an exit code. Anything else is a fault of Processor: its traceback goes
to standard error, with a request to report it.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from processor import __version__
from processor.cli.graph_verb import graph
from processor.cli.recipe_verb import recipe
from processor.cli.scriptlet_verb import scriptlet
from processor.cli.terminal import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXITS,
    complain,
    exit_code_of,
    name_pages,
)
from processor.errors import Faults, ProcessorError

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="CONFIG", help="Use the server of this configuration."),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="NATS server; else NATS_URL and the other NATS_* variables, else localhost."
    ),
]
FormatOption = Annotated[
    Literal["human", "json"] | None,
    typer.Option(help="Lines for people, or JSON objects. By default what fits: a terminal, or a pipe."),
]


def run(
    config: ConfigArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Reload when the configuration or a Runnable changes.")
    ] = False,
    allow_removal: Annotated[
        bool, typer.Option("--allow-removal", help="Let a reload stop routes that the file no longer has.")
    ] = False,
) -> int:
    """Run the routes of a configuration until SIGTERM or Ctrl-C.

    A stop settles what is in hand first, for at most `drain_s` seconds; a second signal ends at once. SIGHUP
    loads the configuration and the Runnables again, once their files are left alone: a version with a fault
    is refused with the place of the fault, and so is one without routes that run now; then the old one goes
    on. Metrics and health are served at `http`.

    Examples:
    processor run market.yaml
    NATS_URL=nats://nats:4222 NATS_CREDS=market.creds processor run market.yaml
    processor run market.yaml --watch
    """
    from processor.cli.serving import Reloading, serve

    return serve(config, reloading=Reloading(is_watching=watch, may_remove=allow_removal))


def dev(
    config: ConfigArgument,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Reload when a file changes.")] = True,
    is_fed: Annotated[bool, typer.Option("--feed/--no-feed", help="Publish the lines of `dev.feed`.")] = True,
) -> int:
    """Try a configuration: run it, create what is missing, feed it, and show what it publishes.

    With `nats.url: embedded`, or without `nats.url` and NATS_URL, a NATS server is started for as long as the
    command runs, and keeps its data in `nats.store_dir`. The feed is published at each start, from where it
    was cut off if it was; the routes go on with what they keep. Outputs and events go to standard output as
    they come, logs to standard error.

    Examples:
    processor dev configs/quickstart.yaml
    processor dev configs/quickstart.yaml --no-feed
    processor dev configs/quickstart.yaml 2>dev.log
    """
    from processor.cli.dev import View, for_trying
    from processor.cli.serving import Reloading, serve

    view = View(is_fed=is_fed)
    reloading = Reloading(
        is_watching=watch, may_remove=True
    )  # a person watches, and no old version has to go on
    return serve(config, reloading=reloading, adapt=for_trying, companion=view, is_free_port_fine=True)


def check(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")
    ] = None,
    server: Annotated[
        bool, typer.Option("--server", help="Also look at the NATS server: streams and permissions.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Print the effective configuration, the jail and all guarantees.")
    ] = False,
    no_secrets: Annotated[
        bool, typer.Option("--no-secrets", help="Secrets and files of a login need not be there, as in CI.")
    ] = False,
    format: Annotated[
        Literal["human", "json"], typer.Option(help="A report for people, or one JSON object.")
    ] = "human",
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Print the JSON Schema of configurations, for editors, and nothing else."
        ),
    ] = False,
) -> int:
    """Find every fault of a configuration and its Runnables, and say what the routes will guarantee.

    Compiles the Runnables as `run` does and changes nothing anywhere. Faults are printed as
    `file:line:column CODE text`. Without one, a line for each route says what it reads, what it writes and
    what is guaranteed; with --full also the effective configuration, the layers of the jail on this machine
    and each guarantee in words.

    Examples:
    processor check market.yaml
    processor check market.yaml --no-secrets
    processor check market.yaml --server --full
    processor check market.yaml --format json | jq .routes
    processor check --schema > processor.schema.json
    """
    from processor.cli.checking import check as check_config
    from processor.cli.checking import print_schema

    if schema:
        return print_schema()
    if config is None:
        raise typer.BadParameter("CONFIG is missing: the configuration to check")
    if server and no_secrets:
        raise typer.BadParameter("--server and --no-secrets exclude each other: the server wants a login")
    return check_config(config, with_server=server, has_secrets=not no_secrets, is_full=full, format=format)


def try_(
    config: ConfigArgument,
    route: Annotated[str, typer.Argument(metavar="ROUTE", help="The route whose Runnable is tried.")],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File with one message per line, or - for standard input.")
    ],
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="SUBJECT",
            help="Subject of the messages; {name} is a field of each. By default as dev.subject or input.",
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take every line as it is, also an empty one.")] = False,
    envelope: Annotated[
        bool,
        typer.Option(
            "--envelope",
            help='Lines are {"subject", "headers", "data"}; "text" or "base64" may replace "data".',
        ),
    ] = False,
    learn: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the policy lines that allow what it asks for to a new FILE."
        ),
    ] = None,
    format: FormatOption = None,
) -> int:
    """Run a route on the messages of a file, without a NATS server, and show everything that it does.

    The Runnable runs in its real guest, with its real limits, batches and retries, and begins without a
    context. Outputs, events, dead letters and what `then: drop` gives up are shown as they would be
    committed, and at the end what has changed in each context. Nothing is published or kept; calls to the
    outside are made. Neither tries nor the breaker are waited for. The exit code is 1 if a message failed.

    With --learn no policy denies anything: everything that the Runnable asks for is done, where the
    configuration declares it, and the file gets a line for it.

    Examples:
    processor try configs/quickstart.yaml stats configs/ticks.jsonl
    echo '{"symbol": "IBM", "date": "today", "price": 3}' | processor try configs/quickstart.yaml counter -
    processor try market.yaml stats ticks.jsonl --subject 'ticks.{symbol}' --format json
    processor tail ticks.IBM --last 100 --no-follow --format json | processor try m.yaml stats - --envelope
    processor try market.yaml stats ticks.jsonl --learn policy.toml
    """
    from processor.cli.trying import try_route

    return try_route(
        config, route, file, subject=subject, is_raw=raw, is_envelope=envelope, learn=learn, format=format
    )


def pub(
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="Subject; {name} or {a.b} is a field of each line.")
    ],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="File with one message per line; by default, or with -, standard input."
        ),
    ] = "-",
    config: ConfigOption = None,
    url: UrlOption = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, metavar="N", help="At most N messages a second.")
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            "-H",
            metavar="NAME:VALUE",
            help="A header of every message; may be given several times.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Publish the input N times over.")] = 1,
    whole: Annotated[bool, typer.Option("--whole", help="Publish the whole input as one message.")] = False,
    from_line: Annotated[int, typer.Option(min=1, metavar="N", help="Begin with line N of the input.")] = 1,
    run_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The run that this one goes on with; it said so when it stopped."),
    ] = None,
) -> int:
    """Publish each line of a file as a message.

    Where a stream holds the subject, every message is acknowledged by it, and one whose answer was lost with
    the connection is sent again without being stored twice. Elsewhere messages go to those who are subscribed
    now. What happened is said on standard error.

    A line that gives no subject, or that is too large, is named with its place and left out; the others are
    published, and the exit code is 1. A run that is stopped says with which options it goes on. With its
    --run-id, a stream drops lines that it has, if they were stored within its duplicate window.

    Examples:
    processor pub ticks.IBM ticks.jsonl --config market.yaml
    echo '{"price": 3}' | processor pub ticks.IBM
    processor pub 'ticks.{symbol}' ticks.jsonl --rate 100 --header 'source: test'
    processor pub images.in picture.png --whole
    processor pub orders orders.jsonl --from-line 20501 --run-id 5f0c9a1be2d7
    """
    from processor.cli.traffic import publish

    _only_one_of(config, url)
    if whole and from_line > 1:
        raise typer.BadParameter("--whole and --from-line exclude each other: the whole has no lines")
    if run_id is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id):
        raise typer.BadParameter("letters, digits, - and _, at most 64", param_hint="--run-id")
    return publish(
        subject,
        file,
        config=config,
        url=url,
        rate=rate,
        headers=header or [],
        count=count,
        is_whole=whole,
        from_line=from_line,
        run_id=run_id,
    )


def tail(
    source: Annotated[
        str, typer.Argument(metavar="SUBJECT|ROUTE", help="A subject or pattern; or with --config a route.")
    ],
    config: ConfigOption = None,
    url: UrlOption = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the oldest message.")] = False,
    last: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Begin with the last N messages.")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Show only what comes from now on.")] = False,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after N messages.")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for more, until Ctrl-C.")] = True,
    format: FormatOption = None,
) -> int:
    """Show the messages of a subject, or what a route publishes.

    A subject is read from the stream that holds it; where none does, messages are shown as they pass. A route
    shows its outputs, events and dead letters. Begins with the last 10 messages unless told otherwise, and
    takes nothing away from anybody.

    Examples:
    processor tail stats --config market.yaml
    processor tail 'ticks.*' --last 100 --no-follow
    processor tail stats.IBM --new --count 1 --format json
    """
    from processor.cli.traffic import tail as tail_messages

    _only_one_of(config, url)
    if from_start + (last is not None) + new > 1:
        raise typer.BadParameter("--from-start, --last and --new exclude each other")
    begin = 0 if new else None if from_start else last or 10
    return tail_messages(
        source, config=config, url=url, last=begin, count=count, follow=follow, format=format
    )


def _only_one_of(config: Path | None, url: str | None) -> None:
    if config is not None and url is not None:
        raise typer.BadParameter("--config and --url exclude each other: both name the server")


def context(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[ACTION] CONFIG ROUTE [KEY] [PATH] [VALUE]",
            help="get, full, set, append, pop, delete, history, export, import or serve, and of what.",
        ),
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; the history shows it.")] = "",
    keys_only: Annotated[
        bool, typer.Option("--keys-only", help="full: only the keys, one per line.")
    ] = False,
    typed: Annotated[
        bool, typer.Option("--typed", help="Write values that JSON lacks as `import` reads them.")
    ] = False,
    first: Annotated[bool, typer.Option("--first", help="pop: the first element, not the last.")] = False,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="history: the last N records.", show_default=False)
    ] = 1_000_000,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="history: of the last 30s, 10m, 2h or 7d, or since a time."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="import: a context becomes its line, and nothing else.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="import: only say what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="serve: the context in a file, such as a recipe's.", show_default=False
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="serve: the port; 0 takes a free one.")
    ] = 8765,
    format: FormatOption = None,
) -> int:
    """Look at what a route has kept, and change it while the route runs.

    `get` shows the context of a key, or the value at PATH; `full` all of them. `set` puts VALUE, which is
    JSON or - for standard input, to PATH; `append` adds it to the list there; `pop` takes the last element
    out and shows it; `delete` removes what is at PATH, or the whole context. `history` shows what was
    changed, by whom. `export` writes a line for each context, which `import` brings in. `serve` answers
    programs on this machine: a line of JSON each way, {"op": "set", "path": "data.user", "value": 1}, with
    the ops full, get, set, append, delete and pop. Without an action it is `get` or `full`.

    PATH is the name of an item, or a JSON pointer: /totals/0. A change is one commit: the route goes on with
    it, and runs again what it had in hand. Values that JSON lacks are shown as the nearest that it has; with
    --typed, in VALUE and in exports a set is {"$set": [1, 2]}, a Decimal {"$decimal": "1.50"}. A route with
    `key: none` has one context, with an empty key.

    Examples:
    processor context configs/quickstart.yaml stats IBM
    processor context full configs/quickstart.yaml stats --keys-only
    processor context set market.yaml stats IBM /limits/0 12.5 --reason 'ticket 4711'
    processor context append market.yaml stats IBM notes '"checked"'
    processor context pop market.yaml stats IBM notes --first
    processor context delete market.yaml counter '' counter
    processor context history market.yaml stats IBM --since 2h
    processor context export market.yaml stats > stats.jsonl
    processor context import market.yaml stats stats.jsonl --replace --yes
    processor context serve market.yaml stats IBM --port 8765
    processor context serve --file orchestrator/Data/context.json
    """
    from processor.cli.contexts import Options, contexts

    if words[0] == "serve":
        from processor.cli.bridging import serve

        return serve(words[1:], file, port, reason)
    if file is not None:
        raise typer.BadParameter("--file is for `serve`")
    return contexts(
        words,
        Options(
            format=format,
            is_keys_only=keys_only,
            is_typed=typed,
            is_first=first,
            reason=reason,
            limit=limit,
            since=since,
            is_whole=replace,
            is_dry=dry_run,
            is_sure=yes,
        ),
    )


def dlq(
    action: Annotated[
        Literal["ls", "show", "redrive", "drop"],
        typer.Argument(metavar="ACTION", help="What to do: ls, show, redrive or drop."),
    ],
    config: ConfigArgument,
    route: Annotated[
        str | None, typer.Argument(metavar="ROUTE", help="Only the dead letters of this route.")
    ] = None,
    id: Annotated[str | None, typer.Option(metavar="ID", help="Only this one, as `ls` names it.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only of the last 30s, 10m, 2h or 7d, or since a time.")
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="CODE", help="Only with this code.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N, oldest first.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before dropping.")] = False,
    format: FormatOption = None,
) -> int:
    """List, show, redrive or drop the messages that were given up.

    `redrive` sends a message back to its route exactly once, with its own subject and headers and its tries
    counted from zero; the route's processor handles it at once, or when it starts. `drop` deletes it.
    Both can be run while the route works.

    Examples:
    processor dlq ls market.yaml
    processor dlq show market.yaml --id stats.12.4711
    processor dlq redrive market.yaml stats --reason E304 --since 2h
    processor dlq drop market.yaml stats --limit 10
    """
    from processor.cli.dlq import dead_letters

    return dead_letters(
        action,
        config,
        route=route,
        id=id,
        since=since,
        code=reason,
        limit=limit,
        is_sure=yes,
        format=format,
    )


RouteArgument = Annotated[str, typer.Argument(metavar="ROUTE", help="The route that is meant.")]


def status(
    config: ConfigArgument,
    route: Annotated[str | None, typer.Argument(metavar="ROUTE", help="Only this route.")] = None,
    format: FormatOption = None,
) -> int:
    """Show which processors run the app, and how far its routes are.

    Members, and for each route how far behind the last message of its input it is, who owns its partitions,
    what waits and what is blocked; with `--format json` also each partition's owner, epoch and position.
    Members that run different configurations or Runnables are marked.

    The exit code is 1 while a route that nobody has paused does not run: it is stopped, it has no processor,
    or one of its partitions has none.

    Examples:
    processor status market.yaml
    processor status market.yaml stats --format json
    """
    from processor.cli.operations import status as show_status

    return show_status(config, route, format)


def pause(
    config: ConfigArgument,
    route: RouteArgument,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; `status` shows it.")] = "",
) -> int:
    """Stop a route on every processor, after what it has in hand, until it is resumed.

    Kept over restarts. Messages wait in the input.

    Examples:
    processor pause market.yaml stats --reason 'database moves'
    """
    from processor.cli.operations import pause as pause_route

    return pause_route(config, route, is_paused=True, reason=reason)


def resume(config: ConfigArgument, route: RouteArgument) -> int:
    """Let a paused route go on where it was.

    Examples:
    processor resume market.yaml stats
    """
    from processor.cli.operations import pause as pause_route

    return pause_route(config, route, is_paused=False, reason="")


def reset(
    config: ConfigArgument,
    route: RouteArgument,
    to: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="`start`, a sequence of the input stream, or a time; one without a zone is local.",
        ),
    ],
    keep_context: Annotated[
        bool, typer.Option("--keep-context", help="Keep what the route remembers; else it starts over.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> int:
    """Make a route read its input again from some point on; its outputs are published again.

    Works while the route runs: its owners are refused with their next commit and begin there. What waited for
    another try is given up: it is read again only where it comes after that point. Dead letters stay. A reset
    that was interrupted leaves the route stopped (E412) until it is run again.

    Examples:
    processor reset market.yaml stats --to start
    processor reset market.yaml stats --to 2026-01-31T08:00 --keep-context --yes
    processor reset market.yaml stats --to 4711
    """
    from processor.cli.operations import reset as reset_route

    return reset_route(config, route, to, keep_context=keep_context, is_sure=yes)


def policy(
    action: Annotated[
        Literal["check", "explain", "show", "test", "renew", "learn", "diff"],
        typer.Argument(
            metavar="ACTION", help="What to do: check, explain, show, test, renew, learn or diff."
        ),
    ],
    config: ConfigArgument,
    route: Annotated[
        str | None,
        typer.Argument(
            metavar="ROUTE",
            help="explain, show: this route; renew: this line, as policy.toml:12; diff: this file.",
        ),
    ] = None,
    op: Annotated[
        str | None, typer.Argument(metavar="OP", help="explain: what it does, such as http.post or secret.")
    ] = None,
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="explain: to what, such as a URL or a name.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="test: write the results as JUnit XML.")
    ] = None,
    since: Annotated[
        str,
        typer.Option(metavar="TIME", help="learn, diff: what was done since then: 30m, 2h, 7d, a time."),
    ] = "7d",
    format: Annotated[
        Literal["human", "json", "toml", "cedar"] | None,
        typer.Option(
            "--format", help="human or json; for show also toml (as human) or cedar.", show_default=False
        ),
    ] = None,
) -> int:
    """Say what the policy files of a configuration allow, and which line says so.

    `check` finds faults, and lines that may be mistakes. `explain` decides about one thing that a route may
    want to do, and prints the lines that would allow it; its exit code is 1 where it is denied. `show` prints
    the lines and budgets, for one route those for it; short tables as the lines that they stand for. `test`
    tries every `[[test]]`. `renew` lets the time of a line with `expires_minutes` begin again.
    `learn` prints the lines that allow what the audit has that routes did, and `diff` what of that another
    policy would decide otherwise; its exit code is 1 where that denies any.

    Examples:
    processor policy check market.yaml
    processor policy explain market.yaml enrich http.post https://api.example.com/v1/pay
    processor policy show market.yaml enrich
    processor policy show market.yaml --format cedar
    processor policy test market.yaml --junit policy.xml
    processor policy renew market.yaml policy.toml:12
    processor policy learn market.yaml --since 7d
    processor policy diff market.yaml stricter.toml
    """
    from processor.cli.policies import policy as about_policy

    return about_policy(action, config, route, op, target, format=format, junit=junit, since=since)


def tool(
    action: Annotated[
        Literal["run", "check", "ls"], typer.Argument(metavar="ACTION", help="What to do: run, check or ls.")
    ],
    config: ConfigArgument,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="run: the tool; of an MCP server server/tool.")
    ] = None,
    arguments: Annotated[
        str | None,
        typer.Argument(metavar="ARGUMENTS", help="run: a JSON object; - reads it from standard input."),
    ] = None,
    format: FormatOption = None,
) -> int:
    """Call a tool of a configuration by hand, find those that cannot be called, or list them.

    `run` calls one and prints its result; what it says beside it, the time and the fuel go to standard error.
    The policies of routes are not asked, and the audit has no entry of it. `check` compiles every module,
    loads every function and asks every MCP server for its list. `ls` shows what each may take, and the routes
    that list it.

    Examples:
    processor tool run market.yaml add '{"a": 5, "b": 3}'
    processor tool run market.yaml calc/add - < arguments.json
    processor tool check market.yaml
    processor tool ls market.yaml
    """
    from processor.cli.tools import tool as about_tool

    return about_tool(action, config, name, arguments, format=format)


def infer(
    config: ConfigArgument,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model, as a Runnable names it.")],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What it is asked; - reads it from standard input.")
    ],
    route: Annotated[
        str | None,
        typer.Option("--route", metavar="ROUTE", help="Ask as this route: its endpoints, under its policy."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Tokens of the answer at most.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the answer as it comes.")] = False,
    format: FormatOption = None,
) -> int:
    """Ask a model of a configuration by hand, and print what it answers.

    The time and the tokens go to standard error. Without --route all endpoints are there and no policy is
    asked. No budget is charged, and the audit has no entry of it.

    Examples:
    processor infer market.yaml llama-3.1 'Is 7 a prime?'
    processor infer market.yaml llama-3.1 - --route sort --stream < prompt.txt
    """
    from processor.cli.inference import infer as ask

    return ask(config, model, prompt, route=route, max_tokens=max_tokens, is_streamed=stream, format=format)


def mcp(
    config: ConfigArgument,
    allow_write: Annotated[
        bool,
        typer.Option("--allow-write", help="Offer also what changes the app, such as pause."),
    ] = False,
) -> int:
    """Serve what may be asked of a running app to an MCP client, on standard input and output.

    Its tools are the requests of `ctl.<app>.api.>`: status, dlq_ls, context_get and others that only read,
    and with --allow-write those that change something. This process does them itself, with the login of the
    configuration. It ends when standard input does.

    Examples:
    processor mcp market.yaml
    processor mcp market.yaml --allow-write
    """
    from processor.cli.mcp import serve

    return serve(config, may_write=allow_write)


def audit(
    action: Annotated[
        Literal["query", "tail", "verify", "export", "keygen"],
        typer.Argument(metavar="ACTION", help="What to do: query, tail, verify, export or keygen."),
    ],
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="The configuration; for verify also a folder of export.")
    ],
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="export: the folder to write.")] = None,
    event: Annotated[
        str | None, typer.Option(help="Only these kinds of entries, such as http,tool or control.")
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Only by this actor; * stands for any text.")] = None,
    route: Annotated[str | None, typer.Option(help="Only of this route.")] = None,
    decision: Annotated[
        Literal["allow", "deny", "error", "shadow"] | None, typer.Option(help="Only what was decided so.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Only about this, such as 'https://*'; * stands for any text.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only from then on: so long ago, as 2h, or a time.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Only until then.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="query: the newest, so many.")] = 100,
    vkey: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys that sign the seals, as keygen prints them, each on a line."),
    ] = None,
    format: FormatOption = None,
) -> int:
    """Say who did what in an app, and whether that is what was written.

    `query` shows entries, `tail` those that come. `verify` checks every entry against its chain, the
    positions of the routes and the seals, and names the first bad entry of each chain; its exit code is 1
    where there is one. `export` writes the audit into a folder with VERIFY.md, which says how to check it
    with openssl and sha256sum; `verify` takes that folder, too. `keygen` makes the key that `audit.key_file`
    names and prints its public half.

    Examples:
    processor audit query market.yaml --event http,tool --decision deny --since 2h
    processor audit tail market.yaml --on 'https://*'
    processor audit verify market.yaml
    processor audit export market.yaml audit-2026-11
    processor audit verify audit-2026-11 --vkey market.vkey
    processor audit keygen market.yaml > market.vkey
    """
    from processor.cli.audits import audit as about_audit
    from processor.cli.audits import filter_of

    which = filter_of(event, actor, route, decision, on, since, until)
    return about_audit(action, config, folder, which, limit=limit, vkey=vkey, format=format)


def authority(
    action: Annotated[Literal["run"], typer.Argument(metavar="ACTION", help="What to do: run.")],
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A Python file for the SDK.")],
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="CONFIG", help="The configuration, a YAML file.")
    ],
    route: Annotated[
        str | None, typer.Option("--route", metavar="ROUTE", help="Under the rules of this route.")
    ] = None,
) -> int:
    """Run a script for the Authority Kernel SDK (`authority_nanos`) in a guest, under the rules of a route.

    The script is plain Python in the jail: what it asks of its kernel passes the policy, the budgets and the
    configuration of the route. Its heap is empty, and gone at the end; no server is needed. What it prints is
    printed. The status is 0, or 1 where it ended with an exception or another status.

    Examples:
    processor authority run report.py --config market.yaml --route stats
    """
    from processor.cli.authority import run as run_script

    return run_script(script, config, route)


def bench(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]...", help="Cases to measure; without one, all.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds; every case runs once in each.")] = 3,
    scale: Annotated[
        float, typer.Option(min=0.001, max=1000, help="Factor on the number of messages of each case.")
    ] = 1.0,
    latency: Annotated[
        float,
        typer.Option(
            "--latency-seconds", min=0, max=3600, help="Seconds of each level of load; 0 measures no latency."
        ),
    ] = 2.0,
    format: Annotated[
        Literal["human", "json", "markdown"],
        typer.Option(help="A report, one JSON object, or a page."),
    ] = "human",
    is_listing: Annotated[bool, typer.Option("--list", help="List the cases and measure nothing.")] = False,
) -> int:
    """Measure this machine: routes beside hand-written programs, on servers that it starts for itself.

    Every round runs every case once, in turn; a figure is the median of the rounds with the lowest and the
    highest, and ratios are made within a round. Needs the extra `embedded`, and for the cases `faststream`
    and `natsio` the extra `bench`. All cases take about half an hour; nothing else should run meanwhile. Ends
    with EXIT_FAILED where a promise was measured and not reached.

    Examples:
    processor bench --list
    processor bench pipelined counter --rounds 5
    processor bench --scale 0.1 --latency-seconds 0.5
    processor bench --format markdown > RESULTS.md
    """
    from processor.cli.benching import measure

    return measure(
        cases or [], rounds=rounds, scale=scale, latency_s=latency, format=format, is_listing=is_listing
    )


def verify_release(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the release.")],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The public key that it has to be signed with; else the one in the folder."
        ),
    ] = None,
) -> int:
    """Check that a release is what was signed: its statement, its signature, and every file.

    A key from the folder itself proves only that the folder is whole: compare the fingerprint that is printed
    with one that you have from elsewhere. What is wrong is named, and the exit code is 1.

    Examples:
    processor verify-release processor-0.1.0 --key release.pub
    """
    from processor.cli.releasing import show_verified

    return show_verified(folder, key)


def explain(
    codes: Annotated[list[str], typer.Argument(metavar="CODE", help="The code of an error, such as E304.")],
    format: FormatOption = None,
) -> int:
    """Say what the code of an error means, what to do, and which page of the documentation has more.

    Examples:
    processor explain E304
    processor explain E418 E419 --format json
    """
    from processor.cli.explaining import explain as explain_codes

    return explain_codes(codes, format)


VERBS: dict[str, Callable[..., int]] = {
    "run": run,
    "dev": dev,
    "check": check,
    "try": try_,
    "pub": pub,
    "tail": tail,
    "context": context,
    "dlq": dlq,
    "status": status,
    "pause": pause,
    "resume": resume,
    "reset": reset,
    "policy": policy,
    "audit": audit,
    "graph": graph,
    "recipe": recipe,
    "scriptlet": scriptlet,
    "tool": tool,
    "infer": infer,
    "mcp": mcp,
    "authority": authority,
    "bench": bench,
    "verify-release": verify_release,
    "explain": explain,
}

_EXAMPLES = "\nExamples:\n"
_PARAGRAPH_LINE = re.compile(r"(?<!\n)\n(?!\n)")
_TOP = """Run user-written Python on NATS streams, in a jail, exactly once.

Examples:
processor dev configs/quickstart.yaml
processor check market.yaml
processor run market.yaml
"""


class _Verb(TyperCommand):
    """A command whose help ends with its examples, exactly as they are written."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as err:
            err.message = err.message.removeprefix("Value error, ")  # what some versions of typer add
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _format_help(self, super().format_help, ctx, formatter)


class _Group(TyperGroup):
    """The program, whose help also lists the exit codes."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _format_help(self, super().format_help, ctx, formatter)


def _format_help(command: Any, format_help: Callable[[Any, Any], None], ctx: Any, formatter: Any) -> None:
    written = command.help
    text, _, examples = written.partition(_EXAMPLES)
    command.help = _PARAGRAPH_LINE.sub(" ", text)
    try:
        format_help(ctx, formatter)
    finally:
        command.help = written
    lines = ["Examples:", *(f"  {example}" for example in examples.strip().splitlines())]
    if isinstance(command, _Group):
        codes = [f"  {code:3}  {name:16}  {meaning}" for code, (name, meaning) in EXITS.items()]
        lines = ["Exit codes:", *codes, "", *lines]
    formatter.write("\n".join(lines) + "\n")


def _version(is_asked: bool) -> None:
    if is_asked:
        sys.stdout.write(f"processor {__version__}\n")
        raise typer.Exit


def program() -> Any:
    """The whole command line, as a command of click."""
    app = typer.Typer(
        cls=_Group,
        help=_TOP,
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def top(
        version: Annotated[
            bool,
            typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
        ] = False,
    ) -> None:
        pass

    for name, verb in VERBS.items():
        text = inspect.cleandoc(verb.__doc__ or "")
        short = text.partition("\n")[0]
        # A value may begin with a minus: it is for the verb to say which words are no options.
        lenient = {"ignore_unknown_options": name == "context"}
        app.command(name, cls=_Verb, help=text, short_help=short, context_settings=lenient)(_ending(verb))
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    sys.excepthook = _report
    try:
        program().main(arguments, prog_name="processor")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_FAILED
    return EXIT_OK


def _ending(verb: Callable[..., int]) -> Callable[..., None]:
    """`verb`, with its result and its errors as the end of the process."""

    @functools.wraps(verb)
    def run_verb(*args: Any, **options: Any) -> None:
        try:
            code = verb(*args, **options)
            sys.stdout.flush()
        except (Faults, ProcessorError) as err:
            complain(err)
            name_pages(str(err))
            code = exit_code_of(err)
        except BrokenPipeError:
            # The reader has gone. What is still buffered must not be tried again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = EXIT_OK
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        raise typer.Exit(code)

    return run_verb


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The end of a process that met a fault of ours."""
    traceback.print_exception(kind, error, trace)
    complain(f"This is a fault in Processor {__version__}; please report it, with the lines above.")
