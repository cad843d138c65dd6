"""What lies in deploy/ is what systemd, Kubernetes and Compose take, and fits the worker."""

import importlib.resources
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from precondition import unavailable

from crucible_worker import lifecycle, readers, settings
from crucible_worker.cli import service
from crucible_worker.cli.main import COMMANDS
from crucible_worker.observe import server

DEPLOY = Path(__file__).parent.parent / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
EXPOSURE = 2.5
# What a worker may take after its drain has timed out.
AFTER_DRAIN = (
    lifecycle.CANCEL_SECONDS + lifecycle.DELIVER_SECONDS + service._LAST_WORDS_SECONDS + 3 * service._CANARY_SECONDS
)


def accepted(environ: dict[str, str]) -> settings.Settings:
    """These settings, as a worker reads them. Secrets in files are left out: the files are not here."""
    return settings.load({}, {k: v for k, v in environ.items() if not k.endswith("_FILE")}, {}).settings


def seconds(text: str) -> float:
    return readers.seconds(text)


# systemd


def analyze(*arguments: str) -> str:
    if shutil.which("systemd-analyze") is None:
        unavailable("systemd-analyze is missing")
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(params=UNITS, ids=lambda path: path.stem)
def unit(request) -> Path:
    return request.param


def values(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_systemd_takes_the_units_and_finds_them_confined(unit):
    said = analyze("verify", str(unit))
    assert unit.name.partition(".")[0] not in said, said
    found = re.search(r"exposure level for \S+: ([\d.]+)", analyze("security", "--offline=true", str(unit)))
    assert float(found[1]) <= EXPOSURE


def test_a_unit_sets_what_the_worker_knows(unit):
    text = " ".join(values(unit, "Environment"))
    environ = dict(pair.split("=", 1) for pair in text.replace("%i", "8083").split())
    assert accepted(environ).state_dir.startswith("%S/crucible-worker")
    assert environ["API_KEY_FILE"] == "%d/" + values(unit, "LoadCredential")[0].partition(":")[0]
    assert environ["SHIV_ROOT"] == "%C/" + values(unit, "CacheDirectory")[0].replace("%i", "8083")
    assert values(unit, "Type") == ["notify"]
    assert values(unit, "RestartPreventExitStatus") == ["64"]


def test_systemd_takes_the_rootless_drop_in_too(tmp_path):
    unit = tmp_path / "crucible-worker.service"
    shutil.copy(DEPLOY / "systemd" / unit.name, unit)
    folder = tmp_path / f"{unit.name}.d"
    folder.mkdir()
    shutil.copy(DEPLOY / "systemd" / "rootless.conf", folder)
    assert "rootless.conf" not in analyze("verify", str(unit))


# Kubernetes


def manifests() -> list[dict]:
    return [found for path in MANIFESTS for found in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def manifest(kind: str) -> dict:
    [found] = [document for document in manifests() if document["kind"] == kind]
    return found


@pytest.mark.parametrize("document", manifests(), ids=lambda document: document["kind"])
@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_kubernetes_takes_the_manifests(document, version):
    """By the schemas of its own OpenAPI document, which refuse what they do not know."""
    kubernetes_validate.validate(document, version, strict=True)


def test_kubernetes_refuses_a_misspelt_manifest():
    document = manifest("NetworkPolicy")
    document["spec"]["ingres"] = document["spec"].pop("ingress")
    with pytest.raises(kubernetes_validate.ValidationError, match="ingres"):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_has_every_manifest():
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert sorted(listed) == [path.name for path in MANIFESTS]


def test_all_manifests_mean_the_same_pods():
    deployment = manifest("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels


def test_a_pod_has_what_the_worker_asks_for():
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["args"][0] in COMMANDS
    configured = accepted(manifest("ConfigMap")["data"])
    assert configured.timeout_max <= configured.drain_timeout
    assert pod["terminationGracePeriodSeconds"] >= configured.drain_timeout + AFTER_DRAIN
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert mounts["state"] == configured.state_dir
    assert f"unix://{mounts['docker']}" == configured.docker_host
    environ = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environ["API_KEY_FILE"] == f"{mounts['key']}/{next(iter(manifest('Secret')['stringData']))}"
    [port] = container["ports"]
    assert configured.health_address.endswith(f":{port['containerPort']}")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == port["name"]
        assert asked["path"] in server.PATHS


def test_the_policy_lets_out_what_the_worker_calls():
    configured = accepted(manifest("ConfigMap")["data"])
    policy = manifest("NetworkPolicy")["spec"]
    out = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert {int(url.rpartition(":")[2]) for url in (configured.queue_url, configured.api_url)} <= out
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [8082]


# Compose


def test_compose_takes_the_file():
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text(encoding="utf-8"))
    jsonschema.validators.validator_for(schema)(schema).validate(COMPOSE)
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.validate({"services": {"worker": {"imagee": "x"}}}, schema)


def test_the_services_are_what_they_say():
    services = COMPOSE["services"]
    assert services["queue"]["command"][0] in COMMANDS
    environ = dict(services["worker"]["environment"])
    configured = accepted(environ)
    assert seconds(services["worker"]["stop_grace_period"]) >= configured.drain_timeout + AFTER_DRAIN
    assert configured.timeout_max <= configured.drain_timeout
    for name in ("queue", "worker"):
        assert services[name]["environment"]["API_KEY_FILE"] == f"/run/secrets/{services[name]['secrets'][0]}"
    assert f"state:{configured.state_dir}" in services["worker"]["volumes"]
    for name, found in services.items():
        assert found["read_only"], name
        assert found["cap_drop"] == ["ALL"], name
