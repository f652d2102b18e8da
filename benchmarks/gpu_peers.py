"""The training loops that `gpu_training.py` compares with, written as in the scripts of torchvision and timm."""

import argparse
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from backbone.inputs import IMAGENET_MEAN, IMAGENET_STD

IMAGES = 1 << 17  # a folder is repeated until it has about so many, so that no epoch ends within a turn


class Step(NamedTuple):
    """What a step says of itself."""

    waited: float  # seconds for its batch


class Timed:
    """An iterator that knows how long its last item was waited for."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items, self.waited = iter(items), 0.0

    def __iter__(self) -> "Timed":
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        item = next(self._items)
        self.waited = time.perf_counter() - began
        return item


def repeated(samples: list[Any]) -> list[Any]:
    """The same files again and again."""
    return samples * -(-IMAGES // len(samples))


def prepared(given: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """One normalised batch on the device, for ever."""
    images = torch.randn(given.batch, 3, given.size, given.size, device=given.device)
    labels = torch.arange(given.batch, device=given.device) % given.classes
    while True:
        yield images, labels


def torchvision_loop(given: argparse.Namespace, root: str | None) -> Callable[[], Generator[Step]]:
    """references/classification/train.py with --amp, of torchvision 0.26; without a root on one prepared batch.

    On a CPU, where there is no scaled float16, bfloat16.
    """
    device = given.device
    on_gpu = device.type == "cuda"
    model = getattr(torchvision.models, "resnet18" if given.tiny else "resnet50")(num_classes=given.classes).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
    amp = torch.float16 if on_gpu else torch.bfloat16

    def batches() -> Iterable[Any]:
        if root is None:
            return prepared(given)
        folder = ImageFolder(
            root,
            transforms.Compose(
                [
                    transforms.RandomResizedCrop(given.size, antialias=True),
                    transforms.RandomHorizontalFlip(0.5),
                    transforms.PILToTensor(),
                    transforms.ConvertImageDtype(torch.float),
                    transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
                ]
            ),
        )
        folder.samples = repeated(folder.samples)
        return torch.utils.data.DataLoader(
            folder,
            batch_size=given.batch,
            sampler=torch.utils.data.RandomSampler(folder),
            num_workers=given.workers,
            pin_memory=on_gpu,
        )

    def loop() -> Generator[Step]:
        model.train()
        timed = Timed(batches())
        for image, target in timed:
            image, target = image.to(device), target.to(device)
            with torch.autocast(device.type, amp):
                output = model(image)
                loss = criterion(output, target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            accuracy(output, target)
            loss.item()
            yield Step(timed.waited)

    return loop


def accuracy(output: Tensor, target: Tensor) -> list[float]:
    """utils.accuracy(output, target, topk=(1, 5)), and the .item() that its meters take of both."""
    with torch.inference_mode():
        _, pred = output.topk(min(5, output.shape[1]), 1, True, True)
        correct = pred.t().eq(target[None])
        return [(correct[:k].flatten().sum(dtype=torch.float32) * (100.0 / len(target))).item() for k in (1, 5)]


def timm_loop(given: argparse.Namespace, root: str | None, compiled: bool) -> Callable[[], Generator[Step]]:
    """train.py of timm 1.0 with --amp --amp-dtype bfloat16 --channels-last; without a root on one prepared batch.

    Raises:
        ImportError: timm is not installed.
    """
    import timm
    from timm.data import ImageDataset, create_loader
    from timm.optim import create_optimizer_v2

    device = given.device
    model: Any = timm.create_model("resnet18" if given.tiny else "resnet50", num_classes=given.classes)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer: Any = create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9, weight_decay=2e-5)
    net = torch.compile(model, backend="inductor") if compiled else model
    loss_fn = nn.CrossEntropyLoss().to(device)

    def batches() -> Iterable[Any]:
        if root is None:
            return prepared(given)
        dataset: Any = ImageDataset(root)
        dataset.reader.samples = repeated(list(dataset.reader.samples))
        return create_loader(
            dataset,
            input_size=(3, given.size, given.size),
            batch_size=given.batch,
            is_training=True,
            color_jitter=0.0,
            interpolation="bilinear",
            num_workers=given.workers,
            pin_memory=device.type == "cuda",
            persistent_workers=given.workers > 0,
            device=device,
            use_prefetcher=True,
        )

    def loop() -> Generator[Step]:
        model.train()
        optimizer.zero_grad()
        timed = Timed(batches())
        for image, target in timed:
            image = image.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_fn(net(image), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield Step(timed.waited)

    return loop
