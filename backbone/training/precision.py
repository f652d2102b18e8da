"""Which precision a device computes in by itself, and the one that a run keeps from its first start on."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from torch.nn import functional as F

from backbone.errors import UserError
from backbone.provenance import hardware
from backbone.storage import filesystem, join
from backbone.training.recipe import TrainingRecipe, identity, recipe_hash
from backbone.training.world import Report, World

R = TypeVar("R", bound=TrainingRecipe)
Precision = Literal["fp32", "bf16", "fp16"]

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's
BF16_ISAS = ("BF16", "AMX", "FP16", "DEFAULT", "ALL")  # in the names oneDNN has for what may be used


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bf16: CUDA 8.0 and later, CPUs with AVX512-BF16 or AMX. Else it is emulated,
    which is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if not any(name in limit for name in BF16_ISAS):
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return bool(BF16_FLAGS & set(flags.split()))


def agreed_precision(precision: str, world: World) -> Precision:
    """The precision that `precision`, which may be auto, means on the devices of all ranks, which all call this.

    Raises:
        UserError: auto, and not all devices compute bf16 or none; names them.
    """
    if precision != "auto":
        return precision  # ty: ignore[invalid-explicit-return]
    mine = "bf16" if computes_bf16(world.device) else "fp32"
    found = world.gather((mine, f"{hardware()} of {socket.gethostname()}"))
    if len({choice for choice, _ in found}) == 1:
        return mine
    where = "; ".join(
        f"{choice} on {', '.join(sorted({name for other, name in found if other == choice}))}"
        for choice in ("bf16", "fp32")
    )
    raise UserError(
        f"compute.precision auto: the workers differ: {where}. Say which all shall take, such as "
        "--compute.precision fp32"
    )


def settle(recipe: R, url: str, world: World, report: Report) -> R:
    """The recipe with the precision its run has; at the first start that is found out and written into `run.json`.

    All ranks call it. A run keeps its precision wherever it goes on: another would change what is learned.

    Raises:
        UserError: as `agreed_precision`.
    """
    precision = agreed_precision(recipe.compute.precision, world)
    if precision != recipe.compute.precision:
        compute = recipe.compute.model_copy(update={"precision": precision})
        recipe = recipe.model_copy(update={"compute": compute, "name": recipe.run_name})
        if world.is_first:
            _record(recipe, url)
            why = "its hardware computes it" if precision == "bf16" else "it has no bf16 units"
            _say(report, f"precision {precision} on {hardware()}: {why}")
    if precision == "bf16" and not computes_bf16(world.device) and world.is_first:
        _say(
            report,
            f"precision bf16 is emulated on {hardware()}: a convolution takes {emulation_cost():.1f} times as long as "
            "in fp32. A new run with --compute.precision auto takes what the hardware computes",
        )
    return recipe


def _record(recipe: TrainingRecipe, url: str) -> None:
    fs, path = filesystem(url)
    place = join(path, "run.json")
    run: dict[str, Any] = json.loads(fs.cat_file(place))
    run |= {"identity": identity(recipe), "recipe_hash": recipe_hash(recipe)}
    fs.pipe_file(join(path, "recipe.yaml"), yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode())
    fs.pipe_file(place, json.dumps(run, indent=2).encode())


def _say(report: Report, text: str) -> None:
    report({"kind": "say", "text": text})


@torch.no_grad()
def emulation_cost() -> float:
    """How many times as long this CPU takes for a 3x3 convolution in bf16 as in fp32."""
    images, weight = torch.randn(8, 32, 28, 28), torch.randn(32, 32, 3, 3)

    def seconds(dtype: torch.dtype) -> float:
        x, w = images.to(dtype), weight.to(dtype)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            F.conv2d(x, w, padding=1)
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)
