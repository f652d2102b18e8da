"""A detector with masks and a backbone, as artifacts and behind the HTTP application without Ray."""

from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from backbone.inputs import InputConvention
from backbone.nets import build as build_backbone
from backbone.options import NetOptions
from detection import artifact
from detection.data.contract import Categories
from detection.nets import build
from detection.serving.models import Look, Model, answers, described, load, look
from detection.serving.options import Limits
from detection.serving.questions import Answer, Question, Refused
from detection.serving.queue import Groups
from tests.detection.conftest import SMALL, write_backbone

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from detection.options import detector_options
from detection.serving.app import Ask, make_app

MASKS = SMALL["detector"] | {"kind": "fpn", "masks": True}
NAMES = ("blue", "red", "green")
Client = Callable[..., "asynccontextmanager[httpx.AsyncClient]"]


def write_detector(url: Path, seed: int = 0, detector: Mapping[str, Any] = MASKS) -> str:
    """A detector's artifact of random weights; one that finds boxes finds something everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build_backbone(NetOptions(net="resnet", depth=18, width=0.125), 3)
        options = detector_options(dict(detector))
        inputs = InputConvention(size=64, channel_order="BGR", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
        artifact.save(url, build(options, net, 3), inputs, Categories(NAMES, (7, 3, 20)), (64, 96), {})
    return str(url)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> folder of a Mask R-CNN and of a backbone."""
    folder = tmp_path_factory.mktemp("served")
    return {"masks": write_detector(folder / "masks/artifact"), "net": write_backbone(folder / "net/artifact")}


@pytest.fixture(scope="session")
def models(artifacts: dict[str, str]) -> dict[str, Model]:
    return {name: load(name, url) for name, url in artifacts.items()}


class Server:
    """The application with the models in this process; `told` is what it observed, `groups` how many went together."""

    def __init__(self, models: dict[str, Model], limits: Limits, token: str = "", batch: int = 1) -> None:
        self.models, self.limits = models, limits
        self.told: list[tuple[str, str, int]] = []
        self.sizes: list[int] = []
        self.groups = Groups(self._compute, batch, ThreadPoolExecutor(1))
        said = [described(model) for model in models.values()]
        self.ask: Ask = self._ask  # tests put others in its place
        self.app = make_app(
            said, limits, token, lambda question: self.ask(question), lambda *told: self.told.append(told[:3])
        )

    def _compute(self, key: tuple, looks: list[Look]) -> list[Answer]:
        self.sizes.append(len(looks))
        return answers(self.models[key[0]], looks)

    async def _ask(self, question: Question) -> Answer | Refused:
        try:
            seen = look(self.models[question.model], question, self.limits)
        except Refused as refused:
            return refused
        return await self.groups.ask((question.model, question.task, seen.sides), seen)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://here") as client:
            yield client


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coloured noise with coarse structure, uint8 RGB [height, width, 3]."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])
