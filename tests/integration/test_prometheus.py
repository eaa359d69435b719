"""The shipped dashboard and alerts in a real Prometheus that scrapes two real processors of one app."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from processor.cli.terminal import EXIT_OK
from processor.embedded import EmbeddedServer
from tests.conftest import waited
from tests.integration.test_cli import COUNT, DEADLINE_S, ROOT, Start, command, done, route
from tests.test_deploy import ALERTS, dashboard_expressions

__all__ = ["command", "done", "route"]

Ask = Any


@pytest.fixture
def prometheus(tmp_path: Path, free_port: int) -> Iterator[Ask]:
    """`prometheus(targets)` starts one and returns `ask(path, **parameters)`: what its API answers."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    started: list[subprocess.Popen[bytes]] = []
    url = f"http://127.0.0.1:{free_port}"

    def start(*targets: str) -> Ask:
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ROOT / "deploy" / "alerts.yaml")],
            "scrape_configs": [{"job_name": "processor", "static_configs": [{"targets": list(targets)}]}],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))
        with open(tmp_path / "prometheus.log", "wb") as log:
            started.append(
                subprocess.Popen(
                    [
                        program,
                        f"--config.file={tmp_path / 'prometheus.yml'}",
                        f"--storage.tsdb.path={tmp_path / 'series'}",
                        f"--web.listen-address=127.0.0.1:{free_port}",
                    ],
                    stdout=log,
                    stderr=log,
                )
            )
        waited(is_ready, "Prometheus answers", DEADLINE_S)
        return ask

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def ask(path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    yield start
    for process in started:
        process.kill()
        process.wait()


def concrete(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it."""
    return expression.replace("$route", ".*").replace("$__rate_interval", "10s")


def test_the_dashboard_and_the_alerts_work_on_what_is_exported(
    route: Path, tmp_path: Path, command: Start, done: Start, nats_server: EmbeddedServer, prometheus: Ask
) -> None:
    """Every query is valid; lag is not counted twice; nothing pages for a paused route; a refusal alarms."""
    runs = [command("run", route, url=nats_server.url) for _ in range(2)]
    targets = []
    for run in runs:
        run.says("metrics at ")
        found = re.search(r"metrics at http://(\S+)/metrics", run.err)
        assert found
        targets.append(found[1])
    ask = prometheus(*targets)

    def values(expression: str) -> dict[str, float]:
        """What a query finds, by its labels."""
        found = ask("query", query=concrete(expression))["result"]
        return {json.dumps(each["metric"], sort_keys=True): float(each["value"][1]) for each in found}

    for expression in dashboard_expressions():
        if expression.startswith("label_values("):
            metric, label = re.findall(r"\w+", expression)[1:]
            waited(lambda: metric in ask("label/__name__/values"), f"{metric} is known", DEADLINE_S)  # noqa: B023
            assert ask(f"label/{label}/values") == ["r"]
        elif expression != "prometheus":
            values(expression)
    waited(lambda: values("count(processor_ready == 1)") == {"{}": 2}, "both are ready", DEADLINE_S)
    assert values("count by (app, hash) (processor_config_info)").popitem()[1] == 2

    done("pause", route, "r", url=nats_server.url)
    lines = "".join(f'{{"i": {i}}}\n' for i in range(7))
    done("pub", "in.a", given=lines, url=nats_server.url)
    waited(lambda: values("sum(processor_lag_messages)") == {"{}": 14}, "both count them", DEADLINE_S)
    [waiting] = [each for each in dashboard_expressions() if "lag_messages" in each]
    assert list(values(waiting).values()) == [7]
    assert values(ALERTS["ProcessorRoutePaused"]["expr"]) == {'{"job": "processor", "route": "r"}': 1}
    assert values(ALERTS["ProcessorRouteStalled"]["expr"]) == {}

    (tmp_path / "count.py").write_text("class Runnable:\n    def process(self:\n")
    runs[0].process.send_signal(signal.SIGHUP)

    def firing() -> set[tuple[str, str]]:
        return {
            (alert["labels"]["alertname"], alert["labels"].get("reason", ""))
            for alert in ask("alerts")["alerts"]
            if alert["state"] == "firing"
        }

    waited(lambda: firing() == {("ProcessorReloadRefused", "E201")}, "the refusal alarms", DEADLINE_S)
    (tmp_path / "count.py").write_text(COUNT)
    waited(lambda: firing() == set(), "the mended file does not alarm", DEADLINE_S)
    for run in runs:
        assert run.ends(signal.SIGTERM) == EXIT_OK
