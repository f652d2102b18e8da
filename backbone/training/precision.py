"""Which precision a device computes in by itself, and the one that a run keeps from its first start on."""

import os
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn import functional as F

from backbone.compute import Compute
from backbone.errors import UserError
from backbone.provenance import hardware
from backbone.training.recipe import TrainingRecipe
from backbone.training.run import record_precision, recorded_precision
from backbone.training.world import Report, World

R = TypeVar("R", bound=TrainingRecipe)

BF16_FEATURES = {"avx512_bf16", "amx_bf16"}
BF16_ISAS = ("BF16", "AMX", "FP16", "AVX10", "DEFAULT", "ALL")
"""Parts of the names that oneDNN has for what it may use, from those with bf16 on."""


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bf16: CUDA 8.0 and later, CPUs with AVX512-BF16 or AMX. Else it is emulated,
    which is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    return bf16_is_used(cpu_features(), torch.backends.cpu.get_cpu_capability(), limit)


def bf16_is_used(features: Collection[str], aten: str, onednn: str) -> bool:
    """Whether a CPU with these `features` computes bf16 where ATen takes the kernels of capability `aten` and oneDNN
    instructions up to `onednn`; ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA hold them below what the CPU has."""
    may = aten.startswith("AVX512") and any(name in onednn.upper() for name in BF16_ISAS)
    return may and not BF16_FEATURES.isdisjoint(features)


def cpu_features() -> set[str]:
    """Names of the instruction sets this CPU has, as Linux writes them; empty where nobody says."""
    ask = getattr(torch.cpu, "get_capabilities", None)  # torch 2.15 has it
    if ask is not None:
        return {name for name, has in ask().items() if has is True}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def agreed_precision(compute: Compute, world: World) -> Compute:
    """`compute` with the precision that auto means on the devices of all ranks, which all call this.

    Raises:
        UserError: auto, and not all devices compute bf16 or none; names them.
    """
    if compute.precision != "auto":
        return compute
    mine = "bf16" if computes_bf16(world.device) else "fp32"
    found = world.gather((mine, f"{hardware()} of {socket.gethostname()}"))
    if len({choice for choice, _ in found}) > 1:
        where = "; ".join(
            f"{choice} on {', '.join(sorted({name for other, name in found if other == choice}))}"
            for choice in ("bf16", "fp32")
        )
        raise UserError(
            f"compute.precision auto: the workers differ: {where}. Say which all shall take, such as "
            "--compute.precision fp32"
        )
    return compute.model_copy(update={"precision": mine})


def settle(recipe: R, url: str, world: World, report: Report) -> R:
    """The recipe with the precision its run has; at the first start that is found out and written into `run.json`.

    All ranks call it. A run keeps its precision wherever it goes on: another would change what is learned. So do
    workers that Ray starts again, with the recipe as it was before the first start.

    Raises:
        UserError: as `agreed_precision`.
    """
    kept = world.gather(recorded_precision(url) if world.is_first else None)[0]
    compute = recipe.compute
    if compute.precision == "auto":
        compute = compute.model_copy(update={"precision": kept}) if kept else agreed_precision(compute, world)
    if not kept and world.is_first:
        record_precision(url, recipe.with_precision(compute.precision))
        if recipe.compute.precision == "auto":
            why = "its hardware computes it" if compute.precision == "bf16" else "it has no bf16 units"
            report({"kind": "say", "text": f"precision {compute.precision} on {hardware()}: {why}"})
    say_if_emulated(compute, world, report)
    return recipe.with_precision(compute.precision)


def say_if_emulated(compute: Compute, world: World, report: Report) -> None:
    """One line on where bf16 is emulated, and what that costs. All ranks call it."""
    if compute.precision != "bf16":
        return
    mine = None if computes_bf16(world.device) else (emulation_cost(world.device), hardware())
    slow = [one for one in world.gather(mine) if one]
    if slow and world.is_first:
        times, where = max(slow)
        report(
            {
                "kind": "say",
                "text": f"precision bf16 is emulated on {where}: a convolution takes {times:.1f} times as long as in "
                "fp32, which another run takes by --compute.precision fp32",
            }
        )


@torch.no_grad()
def emulation_cost(device: torch.device) -> float:
    """How many times as long a device takes for a 3x3 convolution in bf16 as in fp32."""
    images, weight = torch.randn(8, 32, 28, 28, device=device), torch.randn(32, 32, 3, 3, device=device)

    def seconds(dtype: torch.dtype) -> float:
        x, w = images.to(dtype), weight.to(dtype)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            F.conv2d(x, w, padding=1).sum().item()  # waits for the device
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def foretold(recipe: TrainingRecipe, url: str) -> str:
    """For `--dry-run`: the precision, and where auto is not settled yet, what will decide it."""
    if recipe.compute.precision != "auto":
        return recipe.compute.precision
    if kept := recorded_precision(url):
        return f"{kept}, as the run began"
    if recipe.scaling.use_gpu:
        return "auto: bf16 where the workers' GPUs are of compute capability 8.0 or later, else fp32"
    here = "bf16" if computes_bf16(torch.device("cpu")) else "fp32"
    return f"auto: bf16 where the workers' CPUs have AVX512-BF16 or AMX, else fp32; here {here} ({hardware()})"
