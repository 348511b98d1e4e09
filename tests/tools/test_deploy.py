"""What lies in deploy/, held against the service and, where they are installed, shown
to the programs that read it."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    # What it names has to exist here: another user, folder and program.
    text = re.sub(r"(?m)^User=.*$", "User=root", unit())
    text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", text)
    file = tmp_path / "e2b-proxy.service"
    file.write_text(text.replace("/srv/e2b-proxy", str(tmp_path)))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    about_ours = [line for line in checked.stderr.splitlines() if "e2b-proxy" in line]
    assert about_ours == []
    assert checked.returncode == 0, checked.stderr


@needs_systemd
def test_the_unit_is_shut_in() -> None:
    file = DEPLOY / "e2b-proxy.service"
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
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
