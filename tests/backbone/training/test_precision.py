"""The precision of a run is found out at its first start, from the devices of its workers, and stays."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backbone.artifact import load
from backbone.cli import load as load_recipe
from backbone.compute import Compute
from backbone.errors import UserError
from backbone.training import precision
from backbone.training.pretrain import prepare, pretrain
from backbone.training.recipe import Recipe, recipe_hash
from backbone.training.run import record_precision, recorded_precision, run_url
from backbone.training.world import World, local_world

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
Make = Callable[..., Recipe]
HERE = "bf16" if precision.computes_bf16(CPU) else "fp32"


def train(recipe: Recipe) -> list[str]:
    """What the run says."""
    said: list[str] = []
    payload = prepare(recipe, lambda text: None)
    pretrain(payload, ALONE, lambda record: said.append(record["text"]) if record["kind"] == "say" else None)
    return said


@pytest.mark.parametrize("name", ["named", ""])
def test_it_is_found_out_once_and_kept(tiny: Make, name: str) -> None:
    recipe = tiny({"compute.precision": "auto", "schedule.total": 2, "run.precise_bn": 0, "name": name})
    assert any(text.startswith(f"precision {HERE} on ") for text in train(recipe))
    (run,) = Path(recipe.run.storage).iterdir()
    assert run.name == recipe.run_name
    record = json.loads((run / "run.json").read_text())
    assert record["identity"]["compute.precision"] == HERE
    settled = load_recipe(Recipe, run / "recipe.yaml")
    assert settled.compute.precision == HERE
    assert recipe_hash(settled) == record["recipe_hash"]
    provenance = load(run / "artifact")[2]["provenance"]
    assert (provenance["recipe"]["compute"]["precision"], provenance["recipe_hash"]) == (HERE, record["recipe_hash"])

    assert prepare(recipe).recipe.compute.precision == HERE, "auto goes on with what there is"
    assert prepare(settled).url == str(run), "and so does what was written"
    other = "fp32" if HERE == "bf16" else "bf16"
    changed = settled.model_copy(update={"compute": settled.compute.model_copy(update={"precision": other})})
    with pytest.raises(UserError, match=f"compute.precision: the run has '{HERE}', this recipe '{other}'"):
        prepare(changed)


def test_a_run_keeps_it_on_hardware_that_would_choose_otherwise(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun in bf16, as recipes said before there was auto, or on another machine."""
    begun = tiny({"compute.precision": "bf16", "schedule.total": 1, "run.precise_bn": 0})
    prepare(begun)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # the hardware's bf16 units, if any, are not used
    said = train(tiny({"compute.precision": "auto", "schedule.total": 1, "run.precise_bn": 0}))
    (warning,) = [text for text in said if "bf16 is emulated" in text]
    assert "times as long as in fp32" in warning
    recipe = load(Path(begun.run.storage, "tiny", "artifact"))[2]["provenance"]["recipe"]
    assert recipe["compute"]["precision"] == "bf16"


def test_workers_that_are_started_again_keep_it_too(tiny: Make) -> None:
    """Ray gives them the recipe as it was before the first start; their devices may be others by then."""
    payload = prepare(tiny({"compute.precision": "auto"}))
    for found_out in ("bf16", "fp32"):
        record_precision(payload.url, payload.recipe.with_precision(found_out))
        assert precision.settle(payload.recipe, payload.url, ALONE, print).compute.precision == found_out


def test_a_run_whose_workers_could_not_agree_is_begun_by_name(tiny: Make) -> None:
    """Under the name it has, as the message says: nothing has been trained."""
    payload = prepare(tiny({"compute.precision": "auto", "schedule.total": 2, "run.precise_bn": 0}))
    assert json.loads(Path(payload.url, "run.json").read_text())["identity"]["compute.precision"] == "auto"
    train(tiny({"compute.precision": "fp32", "schedule.total": 2, "run.precise_bn": 0}))
    assert recorded_precision(payload.url) == "fp32"
    assert load_recipe(Recipe, Path(payload.url, "recipe.yaml")).compute.precision == "fp32"
    with pytest.raises(UserError, match=r"compute.precision: the run has 'fp32', this recipe 'bf16'"):
        prepare(tiny({"compute.precision": "bf16", "schedule.total": 2, "run.precise_bn": 0}))


@pytest.mark.parametrize(
    ("features", "aten", "onednn", "used"),
    [
        ({"avx512_bf16", "avx512f"}, "AVX512", "ALL", True),
        ({"amx_bf16", "amx_tile"}, "AVX512", "all", True),
        ({"amx_bf16", "avx512_bf16"}, "AVX512", "AVX512_CORE_BF16", True),
        ({"amx_bf16", "avx512_bf16"}, "AVX512", "AVX10_1_512_AMX", True),
        ({"avx512f", "avx512_vnni"}, "AVX512", "ALL", False),
        ({"avx2", "avx_vnni"}, "AVX2", "ALL", False),
        ({"amx_bf16", "avx512_bf16"}, "AVX2", "ALL", False),  # ATEN_CPU_CAPABILITY=avx2
        ({"amx_bf16", "avx512_bf16"}, "DEFAULT", "DEFAULT", False),
        ({"amx_bf16", "avx512_bf16"}, "AVX512", "AVX512_CORE_VNNI", False),
        ({"amx_bf16", "avx512_bf16"}, "AVX512", "AVX2", False),
        ({"bf16", "asimd", "sve"}, "SVE256", "ALL", False),  # ARM: not measured
        (set(), "AVX512", "ALL", False),
    ],
)
def test_a_cpu_computes_bf16_where_it_has_units_and_may_use_them(
    features: set[str], aten: str, onednn: str, used: bool
) -> None:
    assert precision.bf16_is_used(features, aten, onednn) == used


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="nobody else to ask")
def test_torch_and_linux_name_the_same_instruction_sets() -> None:
    told = set(Path("/proc/cpuinfo").read_text().split())
    for feature in precision.BF16_FEATURES:
        assert (feature in precision.cpu_features()) == (feature in told)


def test_limits_of_the_environment_hold_it_below_what_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert not precision.computes_bf16(CPU)


def test_a_dry_run_says_what_is_known(tiny: Make) -> None:
    recipe = tiny({"compute.precision": "auto", "schedule.total": 2, "run.precise_bn": 0})
    url = run_url(recipe)
    assert precision.foretold(recipe, url).startswith("auto: bf16 where the workers' CPUs ")
    assert f"here {HERE} (" in precision.foretold(recipe, url)
    assert "GPUs" in precision.foretold(tiny({"compute.precision": "auto", "scaling.use_gpu": True}), url)
    assert precision.foretold(tiny({"compute.precision": "bf16"}), url) == "bf16"
    train(recipe)
    assert precision.foretold(recipe, url) == f"{HERE}, as the run began"


def _rank(rank: int, port: int, out: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with local_world(use_gpu=False, threads=1) as world:
        precision.computes_bf16 = lambda device: True
        alike = precision.agreed_precision(Compute(precision="auto"), world).precision
        precision.computes_bf16 = lambda device: rank == 0  # two kinds of device in one machine
        try:
            out.put((rank, (alike, precision.agreed_precision(Compute(precision="auto"), world))))
        except UserError as error:
            out.put((rank, (alike, str(error))))


def test_workers_that_disagree_are_named() -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["backbone.training.precision"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, port, out)) for r in range(2)]
    for process in ranks:
        process.start()
    found = dict(out.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
    assert found[0] == found[1]
    alike, refused = found[0]
    assert alike == "bf16"
    assert refused.startswith("compute.precision auto: the workers differ: bf16 on ")
    assert refused.endswith("such as --compute.precision fp32")
