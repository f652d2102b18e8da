"""Nets for CIFAR come from the repositories that publish them, and compute what they computed there."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone import artifact
from backbone.cli import parse
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.interop.importing import run
from backbone.interop.options import Import
from backbone.nets import build
from backbone.options import NetOptions
from tests.backbone.interop.conftest import assert_equal, photos, shaken
from tests.backbone.interop.test_layouts import commands

REAL = os.environ.get("RAYBONE_TEST_DATA")


class Block(nn.Module):
    """akamaster/pytorch_resnet_cifar10's, whose default is option "A", and chenyaofo's, which is `project`."""

    def __init__(self, inputs: int, planes: int, stride: int, project: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.quarter, self.pads = planes // 4, stride != 1 or inputs != planes
        self.project = project
        if project and self.pads:
            conv = nn.Conv2d(inputs, planes, 1, stride, bias=False)
            setattr(self, project, nn.Sequential(conv, nn.BatchNorm2d(planes)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pads and self.project:
            x = getattr(self, self.project)(x)
        elif self.pads:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.quarter, self.quarter), "constant", 0)
        return F.relu(y + x)


class Net(nn.Module):
    def __init__(self, units: int, classes: int, project: str = "", head: str = "linear") -> None:
        super().__init__()
        self.conv1, self.bn1, self.head = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), head
        inputs = 16
        for i, planes in enumerate((16, 32, 64)):
            blocks = nn.Sequential()
            for unit in range(units):
                blocks.append(Block(inputs, planes, 2 if i and not unit else 1, project))
                inputs = planes
            setattr(self, f"layer{i + 1}", blocks)
        setattr(self, head, nn.Linear(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in (1, 2, 3):
            x = getattr(self, f"layer{i}")(x)
        return getattr(self, self.head)(F.avg_pool2d(x, x.shape[-1]).flatten(1))


CASES = {
    "akamaster, option A": (Net(3, 10), "both", {"state_dict": "module."}, (0.485, 0.456, 0.406)),
    "akamaster, option B": (Net(5, 10, "shortcut"), "", {"state_dict": "module."}, (0.485, 0.456, 0.406)),
    "chenyaofo": (Net(3, 100, "downsample", "fc"), "", {}, (0.4914, 0.4822, 0.4465)),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_the_first_error_imports_it_and_it_computes_the_same(case: str, tmp_path: Path) -> None:
    model, pad, wrapped, mean = CASES[case]
    shaken(model)
    tree: dict = {name: t for name, t in model.state_dict().items() if "tracked" not in name}
    for entry, prefix in wrapped.items():
        tree = {"best_prec1": 91.7, entry: {prefix + name: t for name, t in tree.items()}}
    torch.save(tree, tmp_path / "net.th", _use_new_zipfile_serialization=False)
    given = {"source": "torchvision", "weights": str(tmp_path / "net.th"), "output": str(tmp_path / "artifact")}
    with pytest.raises(UserError) as error:
        run(Import.model_validate(given))
    chosen = [words for words in commands(error.value) if str(mean[0]) in words]
    assert len(chosen) == 1
    run(parse(Import, chosen[0])[0])
    net, inputs, _ = artifact.load(tmp_path / "artifact")
    assert (net.options.shortcut, net.options.shortcut_pad) == (("A", "both") if pad else ("B", "end"))
    assert (inputs.mean, inputs.size, inputs.crop_pct) == (mean, 32, 1.0)
    images = photos()[1][:, :, :32, :32]
    x = inputs.normalize(images)
    assert_equal({"logits": net.classify(x)}, {"logits": model(x)})


def test_where_zeros_lie_is_asked_and_nothing_is_guessed(tmp_path: Path) -> None:
    torch.save(Net(3, 10).state_dict(), tmp_path / "net.th")
    given = {"source": "cifar", "weights": str(tmp_path / "net.th"), "output": str(tmp_path / "artifact")}
    pixels = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    with pytest.raises(UserError, match=r"^shortcut_pad: no config beside the weights says"):
        run(Import.model_validate(given | pixels))
    with pytest.raises(UserError, match=r"^mean, std: no config"):
        run(Import.model_validate(given | {"shortcut_pad": "end"}))
    assert run(Import.model_validate(given | pixels | {"shortcut_pad": "end"})).found.net.options.shortcut_pad == "end"


def test_our_own_nets_for_cifar_come_back(tmp_path: Path) -> None:
    own = build(NetOptions(net="cifar_resnet", depth=20, shortcut="A"), 3)
    torch.save(own.state_dict(), tmp_path / "net.pth")
    given = {"source": "cifar", "weights": str(tmp_path / "net.pth"), "output": str(tmp_path / "artifact")}
    done = run(Import.model_validate(given | {"mean": (0.5,) * 3, "std": (0.25,) * 3, "shortcut_pad": "end"}))
    assert done.found.net.options == own.options
    assert done.found.inputs == InputConvention(size=32, crop_pct=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)


@torch.no_grad()
@pytest.mark.data
@pytest.mark.skipif(not REAL, reason="RAYBONE_TEST_DATA, the folder of real data, is not set")
def test_a_published_net(tmp_path: Path) -> None:
    published = f"{REAL}/checkpoints/resnet20-12fca82f.th"
    with pytest.raises(
        UserError, match=r"holds more than tensors: best_prec1, state_dict|state_dict, best_prec1"
    ) as error:
        run(Import(source="torchvision", weights=published, output=str(tmp_path)))
    run(parse(Import, commands(error.value)[0])[0])
    net, inputs, _ = artifact.load(tmp_path)
    model = Net(3, 10).eval()
    state = torch.load(published, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): t for name, t in state.items()}, strict=False)
    x = inputs.normalize(photos()[1][:, :, :32, :32])
    assert_equal({"logits": net.classify(x)}, {"logits": model(x)})
