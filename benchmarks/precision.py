"""Which precision and which layout of memory is fast here: a training step of each family of nets, in all four ways.

fp32 and bf16 by autocast, NCHW and channels_last, take turns on one net each; a row's ratios are medians over the turns
of a step's time over that of fp32 and NCHW in the same turn. Data are random and on the device. Times on a CPU are the
process's own, so that what else runs there counts little. Where a processor has no bf16 units, bf16 is emulated.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from results import parser, spread, write
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.compute import Compute
from backbone.nets import build
from backbone.options import NetOptions
from backbone.training.engine import autocast
from backbone.training.optimizer import build_optimizer
from backbone.training.precision import computes_bf16
from backbone.training.recipe import Optim
from detection.nets import build as build_detector
from detection.options import DetectorOptions

CLASSES = 10
WAYS = {f"{p} {'channels_last' if last else 'NCHW'}": (p, last) for p in ("fp32", "bf16") for last in (False, True)}
NETS = {
    # family: (net, side in pixels, images on a CPU, images on a GPU)
    "basic": (NetOptions(depth=34, width=0.25), 64, 8, 256),
    "basic, full width": (NetOptions(depth=18), 64, 16, 256),
    "bottleneck": (NetOptions(depth=50), 64, 1, 256),
    "cifar": (NetOptions(net="cifar_resnet", depth=20, shortcut="A"), 32, 16, 256),
    "vgg": (NetOptions(net="vgg", depth=16, norm="none", width=0.25), 64, 4, 256),
}
DETECTORS = {
    "Faster R-CNN FPN, basic": (NetOptions(depth=18, width=0.5), 128, 1, 8),
}
Step = Callable[[], None]


def classifier(net: NetOptions, images: Tensor, compute: Compute) -> Step:
    """A step of pretraining on `images`, float [N, 3, S, S]."""
    torch.manual_seed(0)
    model = build(net, CLASSES)
    labels = torch.arange(len(images), device=images.device) % CLASSES
    return step_of(model, images, compute, lambda x: F.cross_entropy(model.classify(x).float(), labels))


def detector(net: NetOptions, images: Tensor, compute: Compute) -> Step:
    """A step of fine-tuning on `images`, float [N, 3, S, S], with four objects each."""
    torch.manual_seed(0)
    model = build_detector(DetectorOptions(norm="trainable", freeze_at=0), build(net, CLASSES), CLASSES)
    count, side = len(images), images.shape[-1]
    corners = torch.rand(count, 4, 2) * side / 2
    boxes = torch.cat([corners, corners + side / 4], 2).to(images.device)
    targets = [{"boxes": one, "labels": torch.arange(1, 5, device=images.device)} for one in boxes]
    sizes = torch.full((count, 2), side)
    return step_of(model, images, compute, lambda x: torch.stack([*model(x, sizes, targets).values()]).sum())


def step_of(model: nn.Module, images: Tensor, compute: Compute, loss: Callable[[Tensor], Tensor]) -> Step:
    """Forward in `compute`'s precision and layout, backward, SGD."""
    model.to(images.device).train()
    if compute.channels_last:
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, Optim(lr=1e-4, lr_batch=0))
    context = autocast(compute, images.device)

    def step() -> None:
        with context:
            value = loss(images)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if images.is_cuda:
            torch.cuda.synchronize()

    return step


def in_turns(steps: dict[str, Step], turns: int, seconds: float, on_gpu: bool) -> dict[str, list[float]]:
    """Seconds a step in each turn, after one of warm-up; turns begun within `seconds`, but at least three."""
    clock = time.perf_counter if on_gpu else time.process_time
    found: dict[str, list[float]] = {way: [] for way in steps}
    deadline = time.perf_counter() + seconds
    for turn in range(turns + 1):
        if turn > 3 and time.perf_counter() > deadline:
            break
        for way, step in steps.items():
            began = clock()
            step()
            found[way].append(clock() - began)
    return {way: times[1:] for way, times in found.items()}


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--nets", nargs="+", choices=[*NETS, *DETECTORS], default=[*NETS, *DETECTORS])
    words.add_argument("--turns", type=int, default=40, help="most turns of each net")
    words.add_argument("--seconds", type=float, default=35, help="no turn of a net begins later")
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--gpu", action="store_true", help="larger batches, on the GPU")
    given = words.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if given.gpu else "cpu")
    rows: list[dict[str, Any]] = []
    for name in given.nets:
        make, (net, side, few, many) = (classifier, NETS[name]) if name in NETS else (detector, DETECTORS[name])
        images = torch.randn(many if given.gpu else few, 3, side, side, device=device)
        steps = {
            way: make(net, images, Compute.model_validate({"precision": precision, "channels_last": last}))
            for way, (precision, last) in WAYS.items()
        }
        seconds = in_turns(steps, given.turns, given.seconds, given.gpu)
        first = seconds[next(iter(WAYS))]
        row: dict[str, Any] = {"family": name, "net": f"{net.name} x{net.width:g}, {len(images)} x {side} px"}
        row["fp32 NCHW, ms"] = 1e3 * spread(first)[0]
        for way in list(WAYS)[1:]:
            ratio, low, high = spread([mine / its for mine, its in zip(seconds[way], first, strict=True)])
            row[f"{way}, times"], row[f"{way}, quartiles"] = ratio, f"{low:.2f} to {high:.2f}"
        rows.append({**row, "turns": len(first)})
    write(given.output, rows, computes_bf16=computes_bf16(device))


if __name__ == "__main__":
    main()
