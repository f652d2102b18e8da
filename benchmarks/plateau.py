"""How long a narrow net of 34 layers learns nothing on rendered scenes, by what it is trained with.

The quickstart's scenes, nets and schedule in a bare loop, fp32 without TF32, three seeds each: its scenes shifted by up
to 4 px and flipped, or (`old`) 8,192 of them, cropped to half of their area or more. A GPU takes seconds a training.
"""

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from results import parser, write
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.data.synthetic import SyntheticSource
from backbone.inputs import InputConvention
from backbone.nets import Backbone, build
from backbone.options import NetOptions

SEEDS = (0, 1, 2)
SIZE, VALIDATION, CHUNK = 64, 1024, 256
WINDOW, LEARNED = 32, 2.0  # steps, and their mean loss; that of guessing among 12 classes is 2.48
INPUTS = InputConvention(size=SIZE)
USUAL = NetOptions(depth=34, width=0.25)
ZERO = NetOptions(depth=34, width=0.25, zero_init_residual=True)
PLAIN = NetOptions(depth=34, width=0.25, shortcut="none")
PREACT = NetOptions(depth=34, width=0.25, preact=True)


@dataclass(frozen=True)
class Case:
    """What a training differs in."""

    net: NetOptions = ZERO
    images: int = 4096
    epochs: int = 4
    batch: int = 32
    lr: float = 0.1
    warmup: float = 0.5  # epochs
    clip: float = 0.0
    weight_decay: float = 5e-4
    crops: bool = False


def old(**more: Any) -> Case:
    """What the quickstart trained with at first, but for `more`."""
    return replace(Case(USUAL, images=8192, epochs=7, batch=64, crops=True), **more)


CASES = {
    "old": old(),
    "old, lr 0.02": old(lr=0.02),
    "old, lr 0.05": old(lr=0.05),
    "old, lr 0.2": old(lr=0.2),
    "old, clip 1": old(clip=1.0),
    "old, warm-up 2": old(warmup=2),
    "old, weight decay 1e-4": old(weight_decay=1e-4),
    "old, batch 32, lr 0.05": old(batch=32, lr=0.05),
    "old, pre-activation": old(net=PREACT),
    "old, zero init": old(net=ZERO),
    "old, zero init, lr 0.2": old(net=ZERO, lr=0.2),
    "old, plain": old(net=PLAIN),
    "old, plain, lr 0.02": old(net=PLAIN, lr=0.02),
    "usual init": Case(net=USUAL),
    "zero init": Case(),
    "zero init, lr 0.05": Case(lr=0.05),
    "zero init, lr 0.2": Case(lr=0.2),
    "zero init, lr 0.4": Case(lr=0.4),
    "zero init, batch 16": Case(batch=16),
    "zero init, batch 64, lr 0.2": Case(batch=64, lr=0.2),
    "zero init, clip 1": Case(clip=1.0),
    "zero init, warm-up 1": Case(warmup=1),
    "pre-activation": Case(net=PREACT),
    "plain": Case(net=PLAIN),
    "plain, lr 0.05": Case(net=PLAIN, lr=0.05),
}


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    words.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    words.add_argument("--epochs", type=int, default=0, help="of every case; 0: its own")
    args = words.parse_args()
    rows = []
    with ProcessPoolExecutor() as pool:
        for name in args.cases:
            case = CASES[name]
            results = [train(case, args.epochs or case.epochs, seed, pool) for seed in args.seeds]
            steps = math.ceil((args.epochs or case.epochs) * case.images / case.batch)
            rows.append(row(name, steps, results))
            print(rows[-1], flush=True)
    write(args.output, rows)


def row(name: str, steps: int, results: list[tuple[float, int | None]]) -> dict[str, Any]:
    """A case's trainings: (top-1, the step its loss left the plateau at)."""
    return {
        "case": name,
        "steps": steps,
        "learns from step": ", ".join("-" if left is None else str(left) for _, left in results),
        "top-1 %": ", ".join(f"{top1:.1f}" for top1, _ in results),
    }


def train(case: Case, epochs: int, seed: int, pool: ProcessPoolExecutor) -> tuple[float, int | None]:
    """Top-1 in percent at the end, and the first step whose last `WINDOW` losses have a mean below `LEARNED`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    INPUTS.prepare(device)
    images, labels = (one.to(device) for one in scenes(seed, case.images, "train", pool))
    torch.manual_seed(seed)
    net = build(case.net, 12).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=case.lr, momentum=0.9, weight_decay=case.weight_decay)
    steps, warmup = math.ceil(epochs * case.images / case.batch), round(case.warmup * case.images / case.batch)
    draws = torch.Generator().manual_seed(seed + 1)
    order = torch.cat([torch.randperm(case.images, generator=draws) for _ in range(epochs + 1)])
    losses = torch.zeros(steps, device=device)
    for step in range(steps):
        rising, done = (step + 1) / max(warmup, 1), (step - warmup) / (steps - warmup)
        rate = case.lr * (rising if step < warmup else 0.5 * (1 + math.cos(math.pi * done)))
        optimizer.param_groups[0]["lr"] = rate
        some = order[step * case.batch : (step + 1) * case.batch].to(device)
        x = vary(normal(images[some]), case.crops, draws)
        loss = F.cross_entropy(net.classify(x), labels[some])
        optimizer.zero_grad()
        loss.backward()
        if case.clip:
            nn.utils.clip_grad_norm_(net.parameters(), case.clip)
        optimizer.step()
        losses[step] = loss.detach()
    means = losses.unfold(0, WINDOW, 1).mean(1)
    learned = (means < LEARNED).nonzero()
    return top1(net, images, case.batch, scenes(seed, VALIDATION, "val", pool)), (
        int(learned[0]) if len(learned) else None
    )


def normal(images: Tensor) -> Tensor:
    """The net's input."""
    return INPUTS.normalize(images).contiguous(memory_format=torch.channels_last)


def vary(x: Tensor, crops: bool, draws: torch.Generator) -> Tensor:
    """Flipped, and cropped or shifted; [N, 3, S, S]."""
    r = torch.rand(len(x), 5, generator=draws)
    places = torch.zeros(len(x), 2, 3)
    flip = torch.where(r[:, 0] < 0.5, 1.0, -1.0)
    if crops:
        area, ratio = 0.5 + 0.5 * r[:, 1], torch.exp((2 * r[:, 2] - 1) * math.log(4 / 3))
        wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        shift_x, shift_y = (2 * r[:, 3] - 1) * (1 - wide), (2 * r[:, 4] - 1) * (1 - high)
    else:
        wide = high = torch.ones(len(x))
        shift_x, shift_y = ((torch.floor(9 * r[:, i]) - 4) * 2 / SIZE for i in (3, 4))
    places[:, 0, 0], places[:, 1, 1], places[:, 0, 2], places[:, 1, 2] = wide * flip, high, shift_x, shift_y
    grid = F.affine_grid(places.to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def top1(net: Backbone, images: Tensor, batch: int, validation: tuple[Tensor, Tensor]) -> float:
    """Percent, with batch statistics taken exactly over some training images."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for some in images[:1024].split(batch):
        net.classify(normal(some))
    net.eval()
    x, labels = (one.to(images.device) for one in validation)
    hits = [
        (net.classify(normal(a)).argmax(1) == b).float() for a, b in zip(x.split(256), labels.split(256), strict=True)
    ]
    return 100 * torch.cat(hits).mean().item()


def scenes(seed: int, count: int, split: str, pool: ProcessPoolExecutor) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, S, S] and labels."""
    parts = pool.map(render, [(seed, count, split, start) for start in range(0, count, CHUNK)])
    images = np.concatenate(list(parts))
    labels = SyntheticSource(seed, count, SIZE, split).labels
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def render(which: tuple[int, int, str, int]) -> np.ndarray:
    """Some images of a split, uint8 [n, S, S, 3]."""
    seed, count, split, start = which
    source = SyntheticSource(seed, count, SIZE, split)
    return np.stack([source.image(i) for i in range(start, min(count, start + CHUNK))])


if __name__ == "__main__":
    main()
