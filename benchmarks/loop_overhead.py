"""What the training loop costs: `engine.train` against a bare PyTorch loop.

Same net, optimizer, precision and device-resident tensors; no data loading in either. Both live in one process and take
turns, so that a noisy machine slows both alike; the result is the median of the ratios of neighbouring turns. The loop
measured is the whole of it: learning rate, finite check, sums, a log record each turn and its display.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from results import parser, spread, write
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.compute import Compute, Scaling
from backbone.data.stream import MicroBatches
from backbone.nets import build
from backbone.options import NetOptions
from backbone.training import engine
from backbone.training.ray_train import launch
from backbone.training.recipe import ConstantSchedule, PretrainOptim, PretrainRun, Recipe
from backbone.training.state import Store
from backbone.training.world import Payload, Report, World

CLASSES = 100
CASES = {
    # name: (net, side in pixels, batch, steps a turn)
    "resnet18": (NetOptions(depth=18), 64, 32, 5),
    "cifar_resnet20": (NetOptions(net="cifar_resnet", depth=20, shortcut="A"), 32, 32, 20),
    "cifar_resnet8, batch 2": (NetOptions(net="cifar_resnet", depth=8, shortcut="A"), 32, 2, 200),
    "resnet50 (GPU)": (NetOptions(depth=50), 224, 256, 20),
}


@dataclass(frozen=True)
class Steps(Payload):
    """What a measurement is given: pixels a side, and steps a turn."""

    recipe: Recipe
    size: int
    steps: int


class Prepared:
    """An engine task on one prepared batch. Times every turn of `steps` steps and then calls `between`."""

    num_samples = 1 << 30  # the only epoch's end is the run's

    def __init__(self, recipe: Recipe, size: int, steps: int, world: World, between: Callable[[], None]) -> None:
        torch.manual_seed(0)
        self.net = build(recipe.model, CLASSES)
        self.model: nn.Module = self.net
        self.steps, self.device, self.between = steps, world.device, between
        images, labels = torch.randn(recipe.optim.batch, 3, size, size), torch.arange(recipe.optim.batch) % CLASSES
        layout = torch.channels_last if recipe.compute.channels_last else torch.contiguous_format
        self.images, self.labels = images.to(world.device, memory_format=layout), labels.to(world.device)
        self.seconds: list[float] = []
        """A step's seconds, one value a turn; the first is warm-up."""

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """As `pretrain.Classification.loss`, from where the images are normalised."""
        logits = self.net.classify(batch["images"]).float()
        losses = F.cross_entropy(logits, batch["labels"], reduction="none")
        return losses, {"error": 100.0 * (logits.argmax(1) != batch["labels"]).sum()}

    def batches(self, micro_batches: MicroBatches) -> Iterator[dict[str, Any]]:
        while True:
            began = now(self.device)
            for _ in range(self.steps):
                yield {"images": self.images, "labels": self.labels, "position": 0, "bad": []}
            self.seconds.append((now(self.device) - began) / self.steps)
            self.between()

    max_bad = 0

    def blame(self, position: int) -> str:
        return f"sample {position}"

    def evaluate(self, model: nn.Module, world: World) -> dict[str, float]:
        return {"error": 0.0, "top5_error": 0.0, "loss": 0.0, "images": 0.0}


def now(device: torch.device) -> float:
    """Seconds, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def make_recipe(net: NetOptions, batch: int, steps: int, turns: int, precision: str, channels_last: bool) -> Recipe:
    """`turns` timed turns after one of warm-up, and a step more, which ends the last turn."""
    return Recipe(
        model=net,
        optim=PretrainOptim(batch=batch, micro_batch=batch, lr=0.001, lr_batch=0),
        schedule=ConstantSchedule(unit="iterations", total=steps * (turns + 1) + 1),
        compute=Compute.model_validate({"precision": precision, "channels_last": channels_last}),
        run=PretrainRun(log_every=steps),
    )


def measure(payload: Steps, world: World, report: Report) -> dict[str, list[float]]:
    """Seconds a step of the loop and of the bare one, turn by turn."""
    recipe, steps = payload.recipe, payload.steps
    bare: list[float] = []

    def run_bare() -> None:
        began = now(world.device)
        for _ in range(steps):
            with context:
                loss = F.cross_entropy(net.classify(task.images), task.labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bare.append((now(world.device) - began) / steps)

    task = Prepared(recipe, payload.size, steps, world, run_bare)
    net = build(recipe.model, CLASSES).to(world.device).train()
    if recipe.compute.channels_last:
        net.to(memory_format=torch.channels_last)
    optimizer = engine.build_optimizer(net, recipe.optim)
    context = engine.autocast(recipe.compute, world.device)
    engine.train(task, recipe, world, Store(payload.url + "/checkpoints"), report)
    return {"loop": task.seconds[1:], "bare": bare[1:]}


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES)[:3])
    words.add_argument("--turns", type=int, default=15, help="turns of each loop")
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    words.add_argument("--channels-last", action="store_true")
    words.add_argument("--gpu", action="store_true")
    given = words.parse_args()
    rows = []
    for case in given.cases:
        net, size, batch, steps = CASES[case]
        recipe = make_recipe(net, batch, steps, given.turns, given.precision, given.channels_last)
        with tempfile.TemporaryDirectory() as folder:
            payload = Steps(folder, recipe, size, steps)
            scaling = Scaling(num_workers=0, use_gpu=given.gpu, cpus_per_worker=given.threads)
            with Path(folder, "log").open("w") as log, contextlib.redirect_stdout(log):
                seconds = launch(measure, payload, scaling)
        pairs = list(zip(seconds["loop"], seconds["bare"], strict=True))
        ratio, low, high = spread([loop / bare for loop, bare in pairs])
        extra = spread([1e6 * (loop - bare) for loop, bare in pairs])
        rows.append(
            {
                "net": case,
                "input": f"{batch} x {size} px {given.precision}",
                "bare, ms a step": 1e3 * spread(seconds["bare"])[0],
                "loop, ms a step": 1e3 * spread(seconds["loop"])[0],
                "overhead, %": 100 * (ratio - 1),
                "quartiles, %": f"{100 * (low - 1):.2f} to {100 * (high - 1):.2f}",
                "extra, us a step": extra[0],
                "turns": len(pairs),
            }
        )
    write(given.output, rows)


if __name__ == "__main__":
    main()
