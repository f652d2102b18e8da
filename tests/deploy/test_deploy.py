"""The deployment kit against what reads it: KubeRay's schemas, Ray's, the jobs, the lock file."""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from backbone.cli import parse
from backbone.sweep.options import Sweep
from backbone.sweep.space import check as check_space
from backbone.training.recipe import TrainingRecipe
from backbone.training.run import check_split, first_micro_batch
from detection.gains import Gains, plan
from tests.test_readme import MODELS, ROOT

DEPLOY = ROOT / "deploy"
CRDS = json.loads((ROOT / "tests/deploy/kuberay.json").read_text())
VERSIONS = yaml.safe_load((DEPLOY / "versions.yaml").read_text())
MANIFESTS = {path.name: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "kuberay").glob("*.yaml"))}
LOCK = {one["name"]: one for one in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def strict(schema: Any) -> Any:
    """As `kubectl apply` validates: a field that the schema has not is an error."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        return closed if free else {**closed, "additionalProperties": False}
    return closed


def validator(kind: str) -> Draft202012Validator:
    schema = {**CRDS["kinds"][kind], "$defs": CRDS["$defs"]}
    metadata = {"name": {"type": "string"}, "labels": {"type": "object"}}
    schema["properties"] = {**schema["properties"], "metadata": {"type": "object", "properties": metadata}}
    return Draft202012Validator(strict(schema))


def faults(manifest: dict[str, Any]) -> list[str]:
    found = validator(manifest["kind"]).iter_errors(manifest)
    return [f"{'.'.join(map(str, one.absolute_path))}: {one.message[:200]}" for one in found]


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, manifest in MANIFESTS.items():
        spec = manifest["spec"]
        cluster = spec if manifest["kind"] == "RayCluster" else spec.get("rayClusterSpec", spec.get("rayClusterConfig"))
        if cluster:
            yield name, cluster


def pods() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, cluster in clusters():
        groups = [("head", cluster["headGroupSpec"]), *((g["groupName"], g) for g in cluster["workerGroupSpecs"])]
        found += [(f"{name}: {group}", told["template"]["spec"]) for group, told in groups]
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid(name: str) -> None:
    assert MANIFESTS[name]["apiVersion"] == "ray.io/v1"
    assert faults(MANIFESTS[name]) == []


def test_the_schemas_find_mistakes() -> None:
    text = (DEPLOY / "kuberay/cluster.yaml").read_text()
    for right, wrong, where in (
        ("groupName: gpu\n", "groupname: gpu\n", "groupname"),
        ("minReplicas: 0", "minReplicas: none", "minReplicas"),
        ("medium: Memory", "medium: {Memory: 1}", "medium"),
        ("mode: token", "mode: tokens", "authOptions.mode"),
        ("containerPort: 6379", "containerPort: gcs", "containerPort"),
        ("terminationGracePeriodSeconds: 120", "terminationGracePeriod: 120", "terminationGracePeriod"),
    ):
        assert right in text
        found = faults(yaml.safe_load(text.replace(right, wrong)))
        assert any(where in line for line in found), (wrong, found)


def test_every_manifest_there_should_be_is_there() -> None:
    kinds = {name: manifest["kind"] for name, manifest in MANIFESTS.items()}
    jobs = dict.fromkeys(("pretrain.yaml", "sweep.yaml", "finetune.yaml", "gains.yaml"), "RayJob")
    assert kinds == {"cluster.yaml": "RayCluster", "serve.yaml": "RayService", **jobs}
    names = [manifest["metadata"]["name"] for manifest in MANIFESTS.values()]
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", name) for name in names)
    groups = {g["groupName"]: g for g in MANIFESTS["cluster.yaml"]["spec"]["workerGroupSpecs"]}
    assert "nodeSelector" in groups["gpu-spot"]["template"]["spec"]
    for name, cluster in clusters():
        for group in cluster["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], name
    for name, manifest in MANIFESTS.items():  # rules of the operator's that no schema has
        if "clusterSelector" in manifest["spec"]:
            assert not {"suspend", "backoffLimit", "rayClusterSpec"} & manifest["spec"].keys(), name
            assert manifest["spec"]["clusterSelector"] == {"ray.io/cluster": "raybone"}
    queued = MANIFESTS["pretrain.yaml"]
    assert queued["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpu-team-a"}
    assert queued["spec"]["suspend"]
    assert queued["spec"]["shutdownAfterJobFinishes"]
    assert not queued["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling")  # Kueue admits what does not grow


@pytest.mark.parametrize(("where", "pod"), pods(), ids=[where for where, _ in pods()])
def test_pods_have_what_training_needs(where: str, pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == "/dev/shm"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == mount["name"]]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert {"readinessProbe", "livenessProbe"} <= container.keys()
    assert pod["restartPolicy"] == "Never"  # what autoscaler v2 demands
    if "head" not in where:
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod["terminationGracePeriodSeconds"] >= 25
    secrets = {one["valueFrom"]["secretKeyRef"]["name"] for one in container["env"]}
    assert "raybone-s3" in secrets
    assert not any("value" in one for one in container["env"])  # no secret lies in a file


def test_every_cluster_wants_a_token_and_its_head_trains_nothing() -> None:
    for name, cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token", "secretName": "raybone-token"}, name
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", name


def entrypoints() -> dict[str, list[str]]:
    """Words of every job that the kit starts, with our own command first."""
    found = {
        name: shlex.split(one["spec"]["entrypoint"]) for name, one in MANIFESTS.items() if "entrypoint" in one["spec"]
    }
    script = (DEPLOY / "slurm.sh").read_text().replace("\\\n", " ")
    (line,) = [line for line in script.splitlines() if "python jobs/" in line]
    words = shlex.split(re.sub(r"\$\{RUNS:-([^}]*)\}", r"\1", line.split(" -- ", 1)[1]))
    return {**found, "slurm.sh": ["raybone", Path(words[1]).stem, *words[2:]]}


@pytest.mark.parametrize("name", entrypoints())
def test_jobs_take_their_command_lines(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As their `--dry-run` would, as far as it goes without data: recipes, fields, splits, plans."""
    monkeypatch.chdir(ROOT if name == "slurm.sh" else tmp_path)  # in a pod only what the image has
    command, job, *words = entrypoints()[name]
    assert (command, (ROOT / f"jobs/{job}.py").exists()) == ("raybone", True)
    recipe, _ = parse(MODELS[job], words)
    storage = recipe.run.storage if isinstance(recipe, TrainingRecipe) else recipe.storage
    assert storage == "/shared/runs" if name == "slurm.sh" else storage.startswith("s3://bucket/")
    if isinstance(recipe, TrainingRecipe):
        unit = recipe.optim.micro_batch or first_micro_batch(recipe)
        check_split(recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"micro_batch": unit})}))
        assert recipe.name
    if isinstance(recipe, Gains):
        recipes = plan(recipe)
        assert all(one.scaling.autoscales for one in recipes.pretrainings.values())
    if isinstance(recipe, Sweep):
        check_space(recipe)


def test_a_job_fits_the_cluster_it_asks_for() -> None:
    recipe, _ = parse(MODELS["pretrain"], entrypoints()["pretrain.yaml"][2:])
    (group,) = MANIFESTS["pretrain.yaml"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert recipe.scaling.num_workers <= group["replicas"] * int(limits["nvidia.com/gpu"])
    assert recipe.scaling.cpus_per_worker <= int(limits["cpu"])


def test_serve_takes_the_services_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(MANIFESTS["serve.yaml"]["spec"]["serveConfigV2"])
    assert ServeDeploySchema.model_validate(config).applications[0].import_path == "detection.serving.run:application"
    with pytest.raises(ValueError, match="import_paths"):
        ServeDeploySchema.model_validate({"applications": [{"import_paths": "a:b"}]})


def test_serving_is_told_what_it_takes() -> None:
    options = pytest.importorskip("detection.serving.options")
    config = yaml.safe_load(MANIFESTS["serve.yaml"]["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    names = [word.replace("s3://", "/") for word in application["args"]["artifact"]]  # no bucket is asked here
    told = options.Serving(**application["args"] | {"artifact": names})
    assert told.use_gpu
    module, name = application["import_path"].split(":")
    spec = find_spec(module)
    assert spec
    assert spec.origin
    assert f"\ndef {name}(" in Path(spec.origin).read_text()


def test_versions_are_those_of_the_lock_file_and_stand_everywhere() -> None:
    assert PROJECT["version"] == VERSIONS["raybone"]
    assert PROJECT["requires-python"] == f">={VERSIONS['python']}"
    assert CRDS["version"] == VERSIONS["kuberay"]
    for package in ("ray", "torch", "torchvision"):
        assert LOCK[package]["version"] == str(VERSIONS[package])
    for name, cluster in clusters():
        assert cluster["rayVersion"] == VERSIONS["ray"], name
    tags = {f"{VERSIONS['image']}:{VERSIONS['raybone']}-{kind}" for kind in ("cpu", "cuda")}
    for where, pod in pods():
        image = pod["containers"][0]["image"]
        assert image in tags, where
        assert image.endswith("-cpu" if "head" in where else "-cuda"), where
    assert yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())["docker"]["image"] in tags
    text = (DEPLOY / "Dockerfile").read_text()
    assert f"ARG PYTHON={VERSIONS['python']}\n" in text
    assert f"uv=={VERSIONS['uv']}\n" in text
    assert f" torch=={VERSIONS['torch']} torchvision=={VERSIONS['torchvision']} " in text
    assert f":{VERSIONS['raybone']}-cuda" in text


def test_the_image_has_every_extra_of_a_cluster_no_git_and_no_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    steps = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    for line in (line for line in steps.splitlines() if "--locked" in line):
        assert "--no-dev" in line
        extras = set(re.findall(r"--extra (\w+)", line))
        assert extras == {"s3", "gcs", "serve", "mlflow", "wandb"}
        assert extras <= PROJECT["optional-dependencies"].keys()
    recipe, _ = parse(MODELS["pretrain"], entrypoints()["pretrain.yaml"][2:])
    assert recipe.compute.compile == "none" or " g++ " in steps.split(" AS run\n")[1].split("\nFROM ")[0]
    assert all(
        word in steps for word in (" rsync ", " openssh-client ", f" boto3=={LOCK['boto3']['version']} ")
    )  # ray up
    assert "USER 1000" in steps
    assert steps.index("USER 1000") < steps.index("FROM run AS cpu")  # nothing after it is root again
    assert steps.count("USER ") == 1
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)$", steps, re.MULTILINE) for word in line.split()[:-1]}
    assert kept[0] == "*"
    assert {f"!{name}" for name in copied} == {line for line in kept if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_shell(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert script.stat().st_mode & 0o100


def test_the_machines_of_ray_up_are_what_ray_takes() -> None:
    spec = find_spec("ray")
    assert spec
    assert spec.submodule_search_locations
    schema = json.loads(Path(spec.submodule_search_locations[0], "autoscaler/ray-schema.json").read_text())
    told = yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())
    wanted = Draft202012Validator(schema)
    assert [one.message for one in wanted.iter_errors(told)] == []
    assert [*wanted.iter_errors({**told, "max_worker": 1})]
    kinds = told["available_node_types"]
    assert kinds[told["head_node_type"]]["resources"] == {"CPU": 0}
    assert kinds["gpu-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) <= told["max_workers"]
    started = [*told["head_start_ray_commands"], *told["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in started if "ray start" in line)
