"""What an operator can watch: GET /metrics, GET /health and the log, together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from code_api_client import CodeApi
from local_e2b import LocalE2B
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from code_api.languages import LANGUAGES
from code_api.sweeper import Sweeper
from config import Config
from conftest import OK_RUN, Service, http, one_run_under_way
from metrics import OUTCOMES

pytestmark = pytest.mark.usefixtures("untraced")

StartService = Callable[..., Service]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(service: Service) -> Samples:
    """All that /metrics says, by name and labels."""
    text = http.get(f"{service.url}/metrics", timeout=30).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(service: Service, name: str, **labels: str) -> float:
    return samples(service)[f"e2b_proxy_{name}", tuple(sorted(labels.items()))]


def health(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"{service.url}/health", timeout=30).json()
    return found


def test_each_label_is_there_with_0_from_the_start(
    start_service: StartService, tmp_path: Path
) -> None:
    found = samples(start_service(FILES_DIR=str(tmp_path)))

    def labels_of(name: str) -> set[tuple[tuple[str, str], ...]]:
        zeros = {key: each for key, each in found.items() if key[0] == name}
        assert set(zeros.values()) == {0}
        return {labels for _, labels in zeros}

    outcomes = [("outcome", outcome) for outcome in OUTCOMES]
    assert labels_of("e2b_proxy_runs_total") == {(each,) for each in outcomes}
    assert labels_of("e2b_proxy_execs_total") == {
        (("language", language), outcome)
        for language in (*LANGUAGES, "other")
        for outcome in outcomes
    }
    assert len(labels_of("e2b_proxy_e2b_failures_total")) == 6
    assert len(labels_of("e2b_proxy_files_removed_total")) == 3
    assert len(labels_of("e2b_proxy_uploads_total")) == 2
    assert len(labels_of("e2b_proxy_step_seconds_count")) == 4


def test_the_limits_are_there_to_be_compared_with(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service(
        MAX_CONCURRENT_RUNS="7",
        SANDBOX_SECONDS_PER_DAY="500",
        FILES_DIR=str(tmp_path),
        FILES_TOTAL_BYTES="1000000",
    )
    assert value(service, "max_concurrent_runs") == 7
    assert value(service, "budget_seconds") == 500
    assert value(service, "files_max_bytes") == 1_000_000
    assert value(service, "spent_seconds") == 0
    assert health(service)["budget_is_spent"] is False


def test_a_spent_budget_is_an_outcome_of_its_own_and_one_warning(
    start_service: StartService, scripted_e2b: LocalE2B, tmp_path: Path
) -> None:
    """To callers it stays `unavailable`, as before."""
    scripted_e2b.set_script({"run": {"run_s": 1.1, **OK_RUN}})
    service = start_service(SANDBOX_SECONDS_PER_DAY="1", FILES_DIR=str(tmp_path))
    assert service.execute().headers["X-Run-Outcome"] == "ok"
    refused = [service.execute() for _ in range(2)]
    assert [each.status_code for each in refused] == [200, 200]
    assert {each.headers["X-Run-Outcome"] for each in refused} == {"unavailable"}
    assert "midnight UTC" in refused[0].text
    body = {"lang": "bash", "code": "true", "files": []}
    executed = http.post(f"{service.url}/v1/exec", json=body, timeout=30)
    assert executed.headers["X-Run-Outcome"] == "unavailable"
    assert "midnight UTC" in executed.json()["stderr"]
    assert value(service, "runs_total", outcome="budget") == 2
    assert value(service, "runs_total", outcome="unavailable") == 0
    exec_labels = {"language": "bash", "outcome": "budget"}
    assert value(service, "execs_total", **exec_labels) == 1
    assert value(service, "spent_seconds") > 1
    assert health(service)["budget_is_spent"] is True
    outcomes = [each.get("outcome") for each in service.requests_logged()]
    assert outcomes == ["ok", "budget", "budget", "budget"]
    warnings = [line for line in service.lines if "No run begins until then" in line]
    assert len(warnings) == 1
    assert '"level": "warning"' in warnings[0].lower()


def test_a_full_service_is_counted_where_it_was_full(
    e2b: LocalE2B, start_shared: StartService, tmp_path: Path
) -> None:
    service = start_shared(MAX_CONCURRENT_RUNS="1", FILES_DIR=str(tmp_path))
    with one_run_under_way(e2b, service):
        assert service.execute().status_code == 503
        body = {"lang": "py", "code": "1", "files": []}
        refused = http.post(f"{service.url}/v1/exec", json=body, timeout=30)
        assert refused.status_code == 429
        assert value(service, "runs_total", outcome="full") == 1
        assert value(service, "execs_total", language="py", outcome="full") == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 401, "body": {"code": 401, "message": "no"}}, "key"),
        ({"status": 429, "body": {"code": 429, "message": "no"}}, "limit"),
        ({"status": 400, "body": {"code": 400, "message": "no"}}, "template"),
        ({"status": 500, "body": {"code": 500, "message": "no"}}, "other"),
        ({"fault": "reset"}, "network"),
    ],
)
def test_what_e2b_does_not_do_is_counted_by_reason(
    start_service: StartService,
    scripted_e2b: LocalE2B,
    answer: dict[str, Any],
    reason: str,
) -> None:
    scripted_e2b.set_script({"create": answer})
    service = start_service()
    assert service.execute().headers["X-Run-Outcome"] == "unavailable"
    assert value(service, "e2b_failures_total", reason=reason) >= 1
    assert value(service, "runs_total", outcome="unavailable") == 1


def test_probes_are_logged_at_debug_unless_they_fail(
    start_service: StartService, scripted_e2b: LocalE2B
) -> None:
    service = start_service(PROXY_API_KEY="k")
    key = {"Authorization": "Bearer k"}
    for path in ("/health", "/ready", "/metrics"):
        answer = requests.get(f"{service.url}{path}", headers=key, timeout=30)
        assert answer.status_code == 200
    assert requests.get(f"{service.url}/metrics", timeout=30).status_code == 401
    service.wait_for_log('"status": 401')
    assert [each["path"] for each in service.requests_logged()] == ["/metrics"]


# --- files


def removed(reason: str) -> float:
    name = "e2b_proxy_files_removed_total"
    return REGISTRY.get_sample_value(name, {"reason": reason}) or 0


@pytest.fixture
def upload(start_shared: StartService, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """`upload()` stores 100 kB, and gives the folder of its session."""
    api = CodeApi(start_shared(FILES_DIR=str(tmp_path)))

    def store() -> Path:
        ref = api.upload("a", b"x" * 100_000)
        return tmp_path / str(ref["storage_session_id"])

    yield store


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"files_total_bytes": 250_000}, "bytes"),
        ({"files_total_inodes": 7}, "inodes"),
        ({"files_ttl_hours": 1}, "age"),
    ],
)
def test_files_are_measured_and_those_that_are_removed_counted_by_reason(
    upload: Callable[[], Path], tmp_path: Path, limits: dict[str, int], reason: str
) -> None:
    folders = [upload() for _ in range(3)]
    an_old_time = time.time() - 7200
    for path in folders[0].iterdir():
        os.utime(path, (an_old_time, an_old_time))
    before = {each: removed(each) for each in ("age", "bytes", "inodes")}
    config = Config(e2b_api_key="x", files_dir=tmp_path, **limits)
    Sweeper(tmp_path, config).sweep()
    assert [folder.exists() for folder in folders] == [False, True, True]
    grown = {each: removed(each) - count for each, count in before.items()}
    assert grown == {**dict.fromkeys(before, 0), reason: 1}
    assert REGISTRY.get_sample_value("e2b_proxy_files_sessions") == 2
    size_bytes = REGISTRY.get_sample_value("e2b_proxy_files_bytes")
    assert size_bytes
    assert 200_000 < size_bytes < 250_000
