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
from backbone.errors import UserError
from backbone.training import precision
from backbone.training.pretrain import prepare, pretrain
from backbone.training.recipe import Recipe, recipe_hash
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


@pytest.mark.parametrize("limit", ["SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_without_its_instructions_a_cpu_does_not_compute_bf16(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert not precision.computes_bf16(CPU)


def test_auto_is_bf16_only_where_the_processor_says_so() -> None:
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    words = set(told.split())
    if not os.environ.get("ONEDNN_MAX_CPU_ISA"):
        assert precision.computes_bf16(CPU) == bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def _rank(rank: int, port: int, out: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with local_world(use_gpu=False, threads=1) as world:
        precision.computes_bf16 = lambda device: True
        alike = precision.agreed_precision("auto", world)
        precision.computes_bf16 = lambda device: rank == 0  # two kinds of device in one machine
        try:
            out.put((rank, (alike, precision.agreed_precision("auto", world))))
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
