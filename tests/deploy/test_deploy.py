"""Containers, Compose, Kubernetes, alerts and dashboard against the code that they speak of. No container is built or run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.api.metrics import Metrics
from services.api.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = [ROOT / "Dockerfile.api", ROOT / "Dockerfile.trainer"]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
WRITTEN = [ROOT / "docker-compose.yml", DEPLOY / "docker" / "gpu.yml", *DOCKERFILES, *MANIFESTS]
NAME = re.compile(r"\b((?:medthink|vllm)[_:][a-z0-9_]+)")


def documents(path: Path) -> list[Any]:
    return [found for found in yaml.safe_load_all(path.read_text(encoding="utf-8")) if found]


def objects() -> Iterator[tuple[Path, Any]]:
    for path in MANIFESTS:
        for found in documents(path):
            yield path, found


def walk(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    known = {f"MEDTHINK_{name.upper()}" for name in Settings.model_fields}
    used = set(re.findall(r"\bMEDTHINK_[A-Z0-9_]+", path.read_text(encoding="utf-8")))
    assert used - known == set()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_what_is_there_and_runs_as_nobody(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    assert copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for source in [name for names in copied for name in names]:
        assert (ROOT / source).exists(), source
        assert any(source == name or source.startswith(f"{name}/") for name in allowed), f"{source} is ignored"
    assert "USER 10001:10001" in lines
    assert lines.index("USER 10001:10001") < next(n for n, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    bases = [line for line in lines if line.startswith("FROM ")]
    assert all("${BASE}" in line for line in bases), "the base can be given by its digest"
    assert not re.search(r"(?i)(password|secret|token)=\S", "\n".join(lines).replace("secret,id=", ""))


def test_compose_is_whole() -> None:
    (compose,) = documents(ROOT / "docker-compose.yml")
    services = compose["services"]
    assert set(services) == {"api", "trainer", "postgres", "prometheus", "grafana"}
    assert services["trainer"]["profiles"] == ["trainer"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"], (name, source)
        assert set(service.get("networks", [])) <= set(compose["networks"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "published on loopback alone"
    for name in ("api", "trainer"):
        assert services[name]["read_only"] is True
        assert (ROOT / services[name]["build"]["dockerfile"]).is_file()
    used = set(re.findall(r"\$\{([A-Z_]+):\?", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    assert used == {"POSTGRES_PASSWORD", "GRAFANA_PASSWORD"}, "secrets have no default"


def test_probes_and_health_checks_ask_for_routes_that_are_there() -> None:
    asked = {
        value["path"]
        for _, found in objects()
        for value in walk(found)
        if isinstance(value, dict) and "path" in value and "port" in value
    }
    text = "".join(path.read_text(encoding="utf-8") for path in [*DOCKERFILES, ROOT / "docker-compose.yml"])
    asked |= {f"/{name}" for name in re.findall(r"/(livez|readyz|health)\b", text)}
    assert asked == {"/livez", "/readyz"}


def test_every_manifest_is_named_and_every_claim_and_selector_is_there() -> None:
    (customised,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    assert set(customised["resources"]) == {path.name for path in MANIFESTS} - {"kustomization.yaml"}
    kinds: dict[str, set[str]] = {}
    for _, found in objects():
        if "metadata" in found:
            kinds.setdefault(found["kind"], set()).add(found["metadata"]["name"])
    claims = {
        value["persistentVolumeClaim"]["claimName"]
        for _, found in objects()
        for value in walk(found)
        if isinstance(value, dict) and "persistentVolumeClaim" in value
    }
    assert claims == kinds["PersistentVolumeClaim"]
    for _, found in objects():
        if found["kind"] in ("Deployment", "Job"):
            pod = found["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert not pod["automountServiceAccountToken"]
            names = {volume["name"] for volume in pod["volumes"]}
            for container in pod["containers"]:
                assert container["securityContext"]["readOnlyRootFilesystem"]
                assert {mount["name"] for mount in container["volumeMounts"]} == names
                assert {"requests", "limits"} <= set(container["resources"])
    assert kinds["HorizontalPodAutoscaler"] == kinds["PodDisruptionBudget"] == kinds["Deployment"]
    assert "Secret" not in kinds, "made by hand, never in the repository"


# Monitoring


def alerts() -> list[dict[str, Any]]:
    return [rule for group in documents(ALERTS)[0]["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "medthink.json").read_text(encoding="utf-8"))
    found = [v["expr"] for v in walk(board) if isinstance(v, dict) and "expr" in v]
    assert found
    return [*found, *(rule["expr"] for rule in alerts())]


def asked_names() -> set[str]:
    # Values of labels, as job="medthink", are no names.
    return {name for query in queries() for name in NAME.findall(re.sub(r'"[^"]*"', '""', query))}


def test_every_metric_of_ours_exists() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    known: set[str] = set()
    for family in registry.collect():
        known |= {
            family.name,
            f"{family.name}_total",
            *(f"{family.name}_{part}" for part in ("bucket", "sum", "count")),
        }
    assert {name for name in asked_names() if name.startswith("medthink_")} - known == set()


@pytest.mark.clients
def test_every_metric_of_the_engine_is_on_a_live_server(url: str) -> None:
    text = httpx.get(url.removesuffix("/v1") + "/metrics").text
    shown = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) | set(
        re.findall(r"^([a-z_:]+)[{ ]", text, re.MULTILINE)
    )
    asked = {name for name in asked_names() if name.startswith("vllm:")}
    assert asked
    assert asked - shown == set()


def test_every_alert_has_its_section_in_the_runbook() -> None:
    headings = set(
        re.findall(r"^#+ (\w+)$", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for rule in alerts():
        assert rule["alert"] in headings
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.parametrize("arguments", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_agrees(arguments: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here: install Debian's `prometheus` package, then the alert rules are tested")
    done = subprocess.run([promtool, *arguments], cwd=ALERTS.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
