"""What lies in deploy/, held against the service and, where they are installed, shown
to the programs that read it."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

import metrics
from config import VERSION, Config
from conftest import ROOT

DEPLOY = ROOT / "deploy"
# Of systemd's own 10, which is a service that is not shut in at all.
MAX_EXPOSURE = 3.0


def unit() -> str:
    return (DEPLOY / "e2b-proxy.service").read_text()


def graceful_s(monkeypatch: pytest.MonkeyPatch, folder: Path) -> float:
    """How long gunicorn lets runs finish, where files are kept."""
    monkeypatch.setenv("E2B_API_KEY", "x")
    monkeypatch.setenv("FILES_DIR", str(folder))
    settings = runpy.run_path(str(ROOT / "gunicorn.conf.py"))
    return float(settings["graceful_timeout"])


# --- systemd

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed"
)


def analyzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """systemd-analyze, where it can do its work: it writes below /run/systemd."""
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    if "Failed to create directory '/run/systemd" in done.stderr:
        pytest.skip("systemd has not been started, so only root can verify a unit")
    return done


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    # What it names has to exist here: another user, folder and program.
    text = re.sub(r"(?m)^User=.*$", "User=root", unit())
    program = f'"{sys.executable}"'  # in the paths may be spaces
    text = re.sub(r"(?m)^ExecStart=\S+", lambda _: f"ExecStart={program}", text)
    file = tmp_path / "e2b-proxy.service"
    here = tmp_path.as_uri().replace("%", "%%")
    text = text.replace("file:///srv/e2b-proxy", here)
    file.write_text(text.replace("/srv/e2b-proxy", str(tmp_path)))
    checked = analyzed("verify", "--man=no", str(file))
    about_ours = [line for line in checked.stderr.splitlines() if "e2b-proxy" in line]
    assert about_ours == []
    assert checked.returncode == 0, checked.stderr


@needs_systemd
def test_the_unit_is_shut_in() -> None:
    file = DEPLOY / "e2b-proxy.service"
    said = analyzed("security", "--offline=true", "--no-pager", str(file))
    level = re.search(r"Overall exposure level for .*: ([\d.]+)", said.stdout)
    assert level, said.stderr
    assert float(level[1]) <= MAX_EXPOSURE


def test_the_unit_has_what_the_service_asks_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = unit().splitlines()
    [state] = [line for line in lines if line.startswith("StateDirectory=")]
    assert f"Environment=FILES_DIR=/var/lib/{state.partition('=')[2]}" in lines
    assert "RestartPreventExitStatus=78" in lines  # os.EX_CONFIG
    [stop] = [line for line in lines if line.startswith("TimeoutStopSec=")]
    assert int(stop.partition("=")[2]) > graceful_s(monkeypatch, tmp_path)


# --- Kubernetes


def kubernetes() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {each["kind"]: each for each in documents}


def test_kubernetes_starts_what_the_image_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = kubernetes()
    assert set(found) == {
        "PersistentVolumeClaim",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
    }
    pod = found["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == f"e2b-proxy:{VERSION}"
    environ = {each["name"]: each["value"] for each in container["env"]}
    names = {setting.upper() for setting in Config.__dataclass_fields__}
    assert {name.removesuffix("_FILE") for name in environ} <= names
    # Each folder that a setting names is mounted.
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert environ["FILES_DIR"] in mounts
    claim = volumes["files"]["persistentVolumeClaim"]["claimName"]
    assert claim == found["PersistentVolumeClaim"]["metadata"]["name"]
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in (ROOT / "Dockerfile").read_text()
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = pod["terminationGracePeriodSeconds"]
    assert grace - pause > graceful_s(monkeypatch, tmp_path)
    # Or it would set E2B_PROXY_PORT and more, each of which is a warning.
    assert pod["enableServiceLinks"] is False


def test_kubernetes_asks_what_answers() -> None:
    found = kubernetes()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert found[kind]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    [container] = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    assert port["containerPort"] == Config(e2b_api_key="x").port
    probes = {
        kind: container[f"{kind}Probe"]["httpGet"]
        for kind in ("startup", "liveness", "readiness")
    }
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    paths = {kind: probe["path"] for kind, probe in probes.items()}
    # An outage of E2B is no reason to kill a container.
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}


def test_kubernetes_own_schema_accepts_it() -> None:
    tools = {"kubeconform": ["-strict"], "kubernetes-validate": ["--strict"]}
    tool = next(filter(shutil.which, tools), None)
    if not tool:
        pytest.skip("neither kubeconform nor kubernetes-validate is installed")
    checked = subprocess.run(
        [tool, *tools[tool], str(DEPLOY / "kubernetes.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# --- Prometheus and Grafana

# What each instance says in a quiet hour, and then what sets off each alert.
QUIET = {
    'up{job="e2b-proxy"}': "1x120",
    'process_start_time_seconds{job="e2b-proxy"}': "1000x120",
    'e2b_proxy_e2b_failures_total{reason="key"}': "0x120",
    'e2b_proxy_e2b_failures_total{reason="network"}': "0x120",
    'e2b_proxy_runs_total{outcome="full"}': "0x120",
    'e2b_proxy_execs_total{language="py",outcome="full"}': "0x120",
    "e2b_proxy_in_flight": "3x120",
    "e2b_proxy_spent_seconds": "100x120",
    "e2b_proxy_budget_seconds": "0x120",
    "e2b_proxy_lost_sandboxes": "0x120",
    "e2b_proxy_kills_failed_total": "0x120",
    "e2b_proxy_files_bytes": "10x120",
    "e2b_proxy_files_max_bytes": "100x120",
}
# 60 quiet minutes; then what is given.
SETS_OFF = {
    "E2BProxyDown": {'up{job="e2b-proxy"}': "1x60 0x60"},
    "E2BProxyRestarts": {
        'process_start_time_seconds{job="e2b-proxy"}': "1000x60 2000x2 3000x2 4000x60"
    },
    "E2BKeyRefused": {'e2b_proxy_e2b_failures_total{reason="key"}': "0x60 1x60"},
    "E2BFails": {'e2b_proxy_e2b_failures_total{reason="network"}': "0x60 9x60"},
    "E2BProxyFull": {'e2b_proxy_runs_total{outcome="full"}': "0x60 1x60"},
    "E2BBudgetNearlySpent": {"e2b_proxy_budget_seconds": "120x120"},
    "E2BSandboxesLost": {"e2b_proxy_lost_sandboxes": "0x60 2x60"},
    "E2BKillsFail": {"e2b_proxy_kills_failed_total": "0x60 1x60"},
    "E2BProxyFilesNearlyFull": {"e2b_proxy_files_bytes": "10x60 90x60"},
}
FIRING = 'count(ALERTS{alertstate="firing", alertname="NAME"}) or vector(0)'
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed"
)


def own_metrics(text: str) -> set[str]:
    return set(re.findall(r"\be2b_proxy_\w+", text))


def test_alerts_and_dashboard_name_metrics_that_there_are() -> None:
    assert metrics.OUTCOMES  # or nothing would be registered
    there_are: set[str] = set()
    for family in REGISTRY.collect():
        there_are |= {family.name + end for end in ("", "_total", "_bucket")}
    for name in ("alerts.yml", "grafana.json"):
        named = own_metrics((DEPLOY / name).read_text())
        assert len(named) > 6
        assert named - there_are == set()


def test_the_dashboard_has_eight_panels_that_do_not_overlap() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    assert len(panels) == 8
    places = [panel["gridPos"] for panel in panels]
    assert len({(place["x"], place["y"]) for place in places}) == 8
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert all(panel["targets"] for panel in panels)


def run_rules(folder: Path, series: dict[str, str], alerts: list[str]) -> str:
    """What promtool says of these minutes, after which these alerts should ring."""
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    names = [rule["alert"] for rule in rules["groups"][0]["rules"]]
    (folder / "alerts.yml").write_text((DEPLOY / "alerts.yml").read_text())
    given = [
        {"series": name, "values": " ".join(f"{each}" for each in expand(values))}
        for name, values in series.items()
    ]
    # Only whether one rings is looked at: its labels and words come from the rule.
    checks = [
        {
            "expr": FIRING.replace("NAME", name),
            "eval_time": "66m",
            "exp_samples": [{"labels": "{}", "value": int(name in alerts)}],
        }
        for name in names
    ]
    tests = {"interval": "1m", "input_series": given, "promql_expr_test": checks}
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "tests": [tests]}))
    said = subprocess.run(
        ["promtool", "test", "rules", "test.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if said.returncode == 0 else said.stdout + said.stderr


def expand(values: str) -> list[str]:
    """ "1x2 0x3" as 1 1 0 0 0."""
    found: list[str] = []
    for part in values.split():
        value, _, times = part.partition("x")
        found += [value] * int(times)
    return found


@needs_promtool
def test_promtool_accepts_the_alerts() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", str(DEPLOY / "alerts.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(SETS_OFF)} rules found" in checked.stdout


@needs_promtool
def test_no_alert_rings_in_a_quiet_hour(tmp_path: Path) -> None:
    assert run_rules(tmp_path, QUIET, []) == ""


@needs_promtool
@pytest.mark.parametrize("alert", SETS_OFF)
def test_an_alert_rings_alone_when_it_should(tmp_path: Path, alert: str) -> None:
    assert run_rules(tmp_path, QUIET | SETS_OFF[alert], [alert]) == ""
