"""The paper's protocols against torchvision's transforms and loops written out; every image once on any ranks."""

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from backbone import artifact
from backbone.cli import parse
from backbone.data.options import Progressive, SyntheticData
from backbone.data.sources import Source, open_source
from backbone.data.synthetic import SyntheticSource, render
from backbone.errors import BadImage, UserError
from backbone.evaluate.evaluation import evaluate, prepare, training_of
from backbone.evaluate.options import BackboneEvaluation
from backbone.evaluate.protocols import Member, dense, probabilities, score
from backbone.evaluate.views import ViewSet, view_for
from backbone.inputs import IMAGENET_MEAN, IMAGENET_STD, InputConvention
from backbone.nets import build
from backbone.options import NetOptions
from backbone.training.ray_train import launch
from backbone.training.world import World, local_world
from tests.backbone.test_artifact import trained

ALONE = World(0, 1, torch.device("cpu"))
SIZE = 64
SCALES = (224, 256, 384, 480, 640)
SHAPES = ((300, 231), (240, 300), (96, 97), (64, 200), (73, 73), (300, 300))


class Photos:
    """Rendered scenes cut to all kinds of shapes; number 3 cannot be read where `broken`."""

    classes = tuple("abcde")
    fingerprint = "photos"

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.labels = np.arange(len(SHAPES)) % 5

    def __len__(self) -> int:
        return len(SHAPES)

    def name(self, i: int) -> str:
        return f"photo {i}"

    def image(self, i: int) -> np.ndarray:
        if self.broken and i == 3:
            raise BadImage("photo 3: truncated")
        height, width = SHAPES[i]
        return np.ascontiguousarray(render(7, i, 300).image[:height, :width])


def options(**changes: Any) -> BackboneEvaluation:
    data = {"workers": 0, "on_bad": "skip"}
    compute = {"precision": "fp32", "channels_last": False}
    return BackboneEvaluation.model_validate(
        {"backbone": ["a"], "batch": 4, "data": data, "compute": compute, **changes}
    )


def pair() -> tuple[Member, nn.Module]:
    """A ResNet-18 of ours and torchvision's with the same weights, whose answers differ from image to image."""
    net = trained(NetOptions(depth=18)).eval()
    torch.nn.init.normal_(net.get_submodule("fc").weight, 0, 0.5)
    other = torchvision.models.resnet18(num_classes=5).eval()
    other.load_state_dict(net.state_dict())
    return Member(net, InputConvention(size=SIZE), "ours"), other


def ours(member: Member, source: Source, protocol: str) -> Tensor:
    """Scores of all images of a source, in one batch."""
    view = view_for(member.inputs, protocol, SCALES)
    batch = ViewSet(source, (view,), "stop").__getitems__(list(range(len(source))))
    return probabilities(member, view, batch["groups"][0], len(source), 4, False)


to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


@torch.no_grad()
def ten_crop(net: nn.Module, image: np.ndarray, size: int) -> Tensor:
    """Five patches and their reflections, as AlexNet's paper has it.

    torchvision's TenCrop cuts five from the reflected image instead, whose centre is another one by a pixel where the
    margin is odd.
    """
    crops = transforms.FiveCrop(size)(transforms.Resize(256 * size // 224)(Image.fromarray(image)))
    crops += tuple(transforms.functional.hflip(crop) for crop in crops)
    return net(torch.stack([to_tensor(crop) for crop in crops])).softmax(1).mean(0)


@torch.no_grad()
def fully_convolutional(net: nn.Module, image: np.ndarray, size: int) -> Tensor:
    """Window by window: the last map's cells that an image of `size` fills, their mean, the classifier."""
    trunk, fc, cells = nn.Sequential(*list(net.children())[:-2]), net.fc, -(-size // 32)  # 112 px fill 4 x 4
    scores = []
    for scale in SCALES:
        scaled = transforms.Resize(scale * size // 224)(Image.fromarray(image))
        for picture in (scaled, scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            last = trunk(to_tensor(picture)[None])[0]
            windows = [
                fc(last[:, y : y + cells, x : x + cells].mean((1, 2)))
                for y in range(last.shape[1] - cells + 1)
                for x in range(last.shape[2] - cells + 1)
            ]
            scores.append(torch.stack(windows).mean(0).softmax(0))
    return torch.stack(scores).mean(0)


@torch.no_grad()
def one_crop(net: nn.Module, image: np.ndarray, size: int) -> Tensor:
    view = transforms.Compose([transforms.Resize(int(size / 0.875)), transforms.CenterCrop(size), to_tensor])
    return net(view(Image.fromarray(image))[None]).softmax(1)[0]


PLAIN = {"1-crop": one_crop, "10-crop": ten_crop, "multi-scale": fully_convolutional}


@pytest.mark.parametrize("protocol", PLAIN)
def test_protocols_are_the_plain_ones(protocol: str) -> None:
    member, other = pair()
    found = ours(member, Photos(), protocol)
    expected = torch.stack([PLAIN[protocol](other, Photos().image(i), SIZE) for i in range(len(SHAPES))])
    assert expected.std(0).max() > 0.03, "else all images look alike and prove nothing"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.data
def test_protocols_are_the_plain_ones_on_photographs() -> None:
    if not os.environ.get("RAYBONE_TEST_DATA"):
        pytest.skip("RAYBONE_TEST_DATA names no folder of real images")
    source = open_source("imagefolder", str(Path(os.environ["RAYBONE_TEST_DATA"], "imagenet_sample")))
    images = [source.image(i) for i in (0, 100)]
    member, other = pair()
    member = member._replace(inputs=InputConvention(size=112))

    class Some(Photos):
        labels = np.zeros(2, np.int64)

        def __init__(self) -> None: ...

        def __len__(self) -> int:
            return len(images)

        def image(self, i: int) -> np.ndarray:
            return images[i]

    for protocol, plain in PLAIN.items():
        expected = torch.stack([plain(other, image, 112) for image in images])
        torch.testing.assert_close(ours(member, Some(), protocol), expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_vgg_is_fully_convolutional() -> None:
    net = trained(NetOptions(net="vgg", depth=11, norm="batch", width=0.05)).eval()
    torch.testing.assert_close(dense(net, x := torch.randn(1, 3, 224, 224), 224), net.classify(x))
    images = torch.randn(1, 3, 256, 288)
    last = net(images)["C5"]
    assert last.shape[2:] == (8, 9)
    windows = [net.classifier(last[:, :, y : y + 7, x : x + 7].flatten(1)) for y in range(2) for x in range(3)]
    torch.testing.assert_close(dense(net, images, 224), torch.stack(windows).mean(0), rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("net", [NetOptions(depth=18, width=0.25), NetOptions(net="cifar_resnet", depth=8)])
def test_one_window_is_the_net_itself(net: NetOptions) -> None:
    made, images = trained(net).eval(), torch.randn(2, 3, 80, 80)
    torch.testing.assert_close(dense(made, images, 80), made.classify(images))


def test_mirror_images_meet_the_mean_image_unmirrored() -> None:
    """As a crop of 10-crop would have in 2012: it is cut, mirrored, and then the mean image is subtracted."""
    member, _ = pair()
    mean = torch.rand(3, SIZE, SIZE)
    inputs = InputConvention(size=SIZE).with_mean_image(mean)
    found = ours(member._replace(inputs=inputs), Photos(), "10-crop")[0]
    crops = transforms.FiveCrop(SIZE)(transforms.Resize(73)(Image.fromarray(Photos().image(0))))
    crops += tuple(transforms.functional.hflip(crop) for crop in crops)
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        x = torch.stack([(transforms.functional.to_tensor(crop) - mean) / std for crop in crops])
        torch.testing.assert_close(found, member.net.classify(x).softmax(1).mean(0), rtol=1e-4, atol=1e-5)


def test_ensembles() -> None:
    """Of one net, or of the same twice: the net. Of two: the mean of their softmax scores, sizes being their own."""
    a, _ = pair()
    torch.manual_seed(1)
    b = Member(build(NetOptions(depth=18, width=0.25), 5).eval(), InputConvention(size=96, crop_pct=1.0), "b")
    source, targets, both = Photos(), np.array([4, 2, 0, 1, 3]), options(protocols=["1-crop", "10-crop"])
    alone = [score([m], source, targets, both, ALONE)["results"] for m in (a, b)]
    assert [r["nets"] for r in alone[0]] == [1, 1]
    twice = score([a, a], source, targets, both, ALONE)["results"]
    together = score([a, b], source, targets, both, ALONE)["results"]
    for p, protocol in enumerate(both.protocols):
        assert twice[3 * p + 2]["of"] == "ensemble of 2"
        assert [twice[3 * p + i]["top1_error"] for i in (0, 1, 2)] == [alone[0][p]["top1_error"]] * 3
        assert together[3 * p : 3 * p + 2] == [alone[0][p], alone[1][p]]
        mean = (ours(a, source, protocol) + ours(b, source, protocol)) / 2
        wrong = mean.argmax(1) != torch.from_numpy(targets[source.labels])
        assert together[3 * p + 2]["top1_error"] == pytest.approx(100 * wrong.double().mean().item())


def test_unreadable_images_are_left_out_and_named() -> None:
    member, _ = pair()
    judged = score([member], Photos(broken=True), np.arange(5), options(protocols=["10-crop"]), ALONE)
    assert (judged["images"], judged["unreadable"], judged["unreadable_names"]) == (5, 1, ["photo 3: truncated"])
    scores = ours(member, Photos(), "10-crop")[[0, 1, 2, 4, 5]]
    wrong = scores.argmax(1) != torch.from_numpy(Photos().labels[[0, 1, 2, 4, 5]])
    assert judged["results"][0]["top1_error"] == pytest.approx(100 * wrong.double().mean().item())
    strict = options(data={"workers": 0, "on_bad": "stop"})
    with pytest.raises(BadImage, match=r"photo 3: truncated; mend or remove it, or set data.on_bad: skip"):
        score([member], Photos(broken=True), np.arange(5), strict, ALONE)


class Colours:
    """50,007 samples, each of a colour of its own; notes which were read."""

    classes = tuple("abcdefghijkl")
    fingerprint = "colours"

    def __init__(self, count: int = 50_007) -> None:
        self.labels = np.arange(count) * 7 % 12
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return str(i)

    def image(self, i: int) -> np.ndarray:
        self.read.append(i)
        key = i * 2654435761
        return np.full((16, 16, 3), (key & 255, key >> 8 & 255, key >> 16 & 255), np.uint8)


def little() -> Member:
    torch.manual_seed(5)
    net = build(NetOptions(net="cifar_resnet", depth=8, shortcut="A", width=0.25), 12).eval()
    return Member(net, InputConvention(size=16, crop_pct=1.0), "little")


def _rank(rank: int, size: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with local_world(use_gpu=False, threads=1) as world:
        source = Colours()
        judged = score([little()], source, np.arange(12), options(batch=512), world)
        Path(folder, f"{size}-{rank}.json").write_text(json.dumps([judged, source.read]))


@pytest.mark.slow
def test_50007_samples_are_counted_once_each_on_any_ranks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["backbone.evaluate.protocols"])
    found = []
    for size in (1, 2, 3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = [context.Process(target=_rank, args=(r, size, port, str(tmp_path))) for r in range(size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0] * size
        parts = [json.loads((tmp_path / f"{size}-{r}.json").read_text()) for r in range(size)]
        read = [i for _, part in parts for i in part]
        assert read == list(range(50_007)), "contiguous shares, in order, each image once"
        assert all(judged == parts[0][0] for judged, _ in parts), "every rank knows the result"
        found.append(parts[0][0])
    assert found[0] == found[1] == found[2]
    assert found[0]["images"] == 50_007
    member, colours = little(), Colours()
    keys = np.arange(50_007) * 2654435761
    pixels = torch.from_numpy(np.stack([keys & 255, keys >> 8 & 255, keys >> 16 & 255], 1).astype(np.uint8))
    with torch.no_grad():
        wrong = sum(
            (member.net.classify(member.inputs.normalize(part[:, :, None, None].expand(-1, -1, 16, 16))).argmax(1) != t)
            .sum()
            .item()
            for part, t in zip(pixels.split(1000), torch.from_numpy(colours.labels).split(1000), strict=True)
        )
    assert 0 < wrong < 50_007
    assert found[0]["results"][0]["top1_error"] == pytest.approx(100 * wrong / 50_007, abs=1e-9)


def write(folder: Path, classes: tuple[str, ...], seed: int = 0, **changes: Any) -> str:
    torch.manual_seed(seed)
    net = build(
        NetOptions.model_validate({"net": "cifar_resnet", "depth": 8, "shortcut": "A", **changes}), len(classes)
    )
    artifact.save(folder / "artifact", net, InputConvention(size=32, crop_pct=1.0), classes, {})
    return str(folder / "artifact")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images of three classes."""
    for i in range(12):
        place = tmp_path / "images" / "xyz"[i % 3] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(1, i, 40).image).save(place)
    return tmp_path / "images"


def recipe(images: Path, *backbones: str, **changes: Any) -> BackboneEvaluation:
    data = {"source": "imagefolder", "val": str(images), "cache": str(images.parent), "workers": 0}
    return BackboneEvaluation.model_validate({"backbone": backbones, "data": data, **changes})


def test_labels_are_matched_by_name(tmp_path: Path, images: Path) -> None:
    """A net that knows more classes, in another order."""
    url = write(tmp_path / "net", ("w", "z", "y", "x"))
    assert prepare(recipe(images, url)).targets.tolist() == [3, 2, 1]
    assert prepare(recipe(images, url, by_position=True)).targets.tolist() == [0, 1, 2]


def test_how_images_grew_does_not_bind_what_is_judged(tmp_path: Path) -> None:
    """Trained at 24, then 32 px: judged at either, and at less."""
    torch.manual_seed(0)
    net = build(NetOptions(net="cifar_resnet", depth=8, shortcut="A"), 10)
    grows = {"from_size": 24, "start": 0, "end": 2, "step": 8}
    data = SyntheticData.model_validate({"size": 32, "val_images": 12, "workers": 0, "progressive": grows})
    made = {"recipe": {"data": data.model_dump(mode="json"), "seed": 3}}
    url = str(tmp_path / "artifact")
    artifact.save(url, net, InputConvention(size=32, crop_pct=1.0), SyntheticSource(3, 12, 32, "val").classes, made)
    for size in (24, 16, 32):
        typed, _ = parse(BackboneEvaluation, ["--backbone", url, "--data.size", str(size)])
        payload = prepare(typed)
        assert payload.sizes == [(size, 1.0)]
        assert payload.options.data.progressive == Progressive()
        assert payload.options.data.val_images == 12
        assert payload.seed == 3


def test_what_does_not_fit_is_said(tmp_path: Path, images: Path) -> None:
    known, foreign = write(tmp_path / "a", ("x", "y", "z")), write(tmp_path / "b", ("cat", "dog", "y"))
    with pytest.raises(UserError, match=r"2 class\(es\) that the nets were not trained on: x, z; they know cat"):
        prepare(recipe(images, foreign))
    with pytest.raises(UserError, match="b/artifact: its classes are not those of"):
        prepare(recipe(images, known, foreign))
    with pytest.raises(UserError, match="was not trained here; name images"):
        prepare(BackboneEvaluation(backbone=(known,)))


def test_tables_say_how_long_ours_was_trained() -> None:
    here = {"steps": 1300, "epochs": 3.328, "recipe": {"optim": {"batch": 128}}}
    assert training_of(here) == "1,300 steps of 128 (3.33 epochs)"
    assert training_of({"imported": {"source": "timm"}}) == "imported from timm"
    assert training_of({}) == ""


@pytest.mark.ray
def test_workers_write_what_one_process_writes(ray_cluster: Any, tmp_path: Path, images: Path) -> None:
    classes = ("x", "y", "z", *map(str, range(7)))
    urls = [write(tmp_path / "a", classes, depth=20), write(tmp_path / "b", classes, 1, shortcut="none")]
    common: dict[str, Any] = {"protocols": ["1-crop", "10-crop", "multi-scale"], "scales": [224, 256]}
    alone = recipe(images, *urls, **common, scaling={"num_workers": 0}, output=str(tmp_path / "alone"))
    two = recipe(images, *urls, **common, scaling={"num_workers": 2}, output=str(tmp_path / "two"))
    found = [launch(evaluate, prepare(r), r.scaling) for r in (alone, two)]
    assert found[0] == found[1]
    written = json.loads((tmp_path / "two" / "results.json").read_text())
    assert written["results"] == found[0]["results"]
    assert len(written["results"]) == 9
    provenance = written["provenance"]
    assert provenance["workers"] == 2
    sha = artifact.load(urls[1])[2]["weights_sha256"]
    assert provenance["backbones"][1]["weights_sha256"] == sha
    row = next(r for r in written["paper"] if r["paper"]["net"] == "ResNet-20")
    assert row["paper"]["top1_error"] == 8.75
    assert row["ours"]["top1_error"] == written["results"][0]["top1_error"]
    text = " ".join((tmp_path / "two" / "beside_paper.md").read_text().split())  # without the padding
    assert "| ResNet-20 | CIFAR-10 test | 8.75 | - |" in text
    assert "| ResNet-56 | CIFAR-10 test | 6.97 | - | - | - | - | - | - |" in text
