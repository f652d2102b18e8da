"""Every command and snippet of docs/export runs, as far as the framework is there; the rest is parsed and compared."""

import os
import pickle
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
import torchvision
import yaml
from pycocotools import mask as rle

from backbone import artifact
from backbone.cli import parse
from backbone.inputs import InputConvention
from backbone.interop.mmdetection import literal_model
from backbone.interop.options import Export, Import
from backbone.nets import build
from backbone.options import NetOptions
from detection.artifact import save as save_detector
from detection.evaluate import detect
from tests.backbone.interop.test_caffe import caffe2
from tests.detection.interop.conftest import KINDS, loaded

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/export"
ABSENT = re.compile(r"^(?:from|import) (?:detectron2|mmdet|caffe)\b|^_base_ = ", re.MULTILINE)


def blocks(page: str, kind: str) -> list[str]:
    text = (DOCS / f"{page}.md").read_text()
    return [block.replace("\\\n", " ") for block in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)]


def commands(page: str, job: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if f"jobs/{job}.py" in line]
    return [shlex.split(line.split(f"jobs/{job}.py", 1)[1]) for line in lines]


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    artifact.save(folder, build(NetOptions(), 3), InputConvention(size=64), ("a", "b", "c"), {})
    return folder


@pytest.fixture
def place(tmp_path: Path, resnet50: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as the pages assume it."""
    (tmp_path / "runs/my-resnet50").mkdir(parents=True)
    (tmp_path / "runs/my-resnet50/artifact").symlink_to(resnet50)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], None]:
    """A job in this process, where torch is imported already."""

    def run(job: str, words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [job, *words])
        runpy.run_path(str(ROOT / f"jobs/{job}.py"), run_name="__main__")

    return run


def executed(page: str) -> dict[str, Any]:
    """The names that a page's snippets leave behind; what needs an absent framework is compiled alone."""
    names: dict[str, Any] = {}
    for i, block in enumerate(blocks(page, "python")):
        code = compile(block, f"{page}.md, snippet {i + 1}", "exec")
        if not ABSENT.search(block):
            exec(code, names)
    return names


@pytest.mark.parametrize("page", ["torchvision", "timm", "transformers"])
def test_from_an_artifact_to_a_step_of_training(page: str, place: Path, run: Callable) -> None:
    pytest.importorskip(page, reason="the page is about it")
    for words in commands(page, "export"):
        run("export", words)
    torch.manual_seed(0)
    names = executed(page)
    detector = names["model"] if page == "torchvision" else names["detector"]
    body = artifact.load("runs/my-resnet50/artifact")[0].layer4[2].conv3.weight
    shaped = [p for p in detector.parameters() if p.shape == body.shape and p.grad is not None]
    assert shaped, "the last stage trains"
    if page == "torchvision":
        assert names["view"] is not None
        assert all(loss.isfinite() for loss in names["losses"].values())
    elif page == "timm":
        assert names["finetuned"].num_classes == 7
        assert any(torch.equal(p, body) for p in shaped), "no step was taken, so these are ours"
    else:
        assert names["loss"].isfinite()
        assert any(torch.equal(p, body) for p in shaped)


def test_detectron2(place: Path, run: Callable) -> None:
    (words,) = commands("detectron2", "export")
    run("export", words)
    executed("detectron2")
    shown = yaml.safe_load(blocks("detectron2", "yaml")[0])
    written = yaml.safe_load((place / "exported/detectron2/backbone.yaml").read_text())
    for name in ("PIXEL_MEAN", "PIXEL_STD"):
        assert written["MODEL"].pop(name) == pytest.approx(shown["MODEL"].pop(name))
    assert written == shown


def test_mmdetection(place: Path, run: Callable) -> None:
    (words,) = commands("mmdetection", "export")
    run("export", words)
    assert executed("mmdetection")["model"]["backbone"]["style"] == "pytorch"
    shown = literal_model(blocks("mmdetection", "python")[0])
    written = literal_model((place / "exported/mmdetection/backbone.py").read_text())
    for name in ("mean", "std"):
        given = written["data_preprocessor"].pop(name)
        assert given == pytest.approx(shown["data_preprocessor"].pop(name))
    assert written == shown
    card = (place / "exported/mmdetection/README.md").read_text()
    snippet = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    assert snippet.startswith('_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"]')


def test_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable) -> None:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the page is about it")
    # Any net goes, this one in seconds, and no other framework has it.
    small = NetOptions(net="cifar_resnet", depth=8, shortcut="A", preact=True, norm="group")
    inputs = InputConvention(size=32)
    artifact.save(tmp_path / "runs/my-resnet50/artifact", build(small, 3), inputs, ("a", "b", "c"), {})
    monkeypatch.chdir(tmp_path)
    (words,) = commands("onnx", "export")
    run("export", words)
    names = executed("onnx")
    assert names["found"]["logits"].shape == (2, 3)
    assert names["classes"] == ["a", "b", "c"]


def test_a_detector_in_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable) -> None:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the page is about it")
    made = loaded(KINDS["fpn masks"])
    save_detector(tmp_path / "runs/my-detector/artifact", made.detector, made.inputs, made.categories, (96, 150), {})
    monkeypatch.chdir(tmp_path)
    run("export", commands("detectors", "export")[0])
    names: dict[str, Any] = {}
    for block in blocks("detectors", "python")[:2]:
        exec(block, names)
    assert names["classes"] == list(made.categories.names)
    assert len(names["masks"]) == len(names["found"]["boxes"]) > 10
    theirs = [rle.decode(mask) for mask in detect(made, [names["image"]])[0]["masks"]]
    apart = [(a != b).sum() for a, b in zip(names["masks"], theirs, strict=True)]
    assert all(b.sum() for b in theirs)
    assert max(apart) <= 3  # where a probability is as good as 0.5


@pytest.mark.slow
def test_a_detector_in_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable) -> None:
    few = {"rpn": {"pre_nms_test": 60, "post_nms_test": 40}, "roi": {"detections": 20}}
    made = loaded({"kind": "fpn", **few}, depth=50, width=1.0)
    save_detector(tmp_path / "runs/my-detector/artifact", made.detector, made.inputs, made.categories, (96, 150), {})
    monkeypatch.chdir(tmp_path)
    run("export", commands("detectors", "export")[1])
    names: dict[str, Any] = {}
    exec(blocks("detectors", "python")[2], names)
    assert set(names["found"]) == {"boxes", "labels", "scores"}
    assert torch.equal(names["model"].rpn.head.cls_logits.weight, made.detector.rpn.head.cls_logits.weight)


def test_imports_that_have_their_files_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=3)
    state = {name: t.detach() for name, t in model.state_dict().items()}
    torch.save(state, "resnet50-11ad3fa6.pth")
    blobs: dict[str, np.ndarray] = caffe2(state)
    Path("R-50.pkl").write_bytes(pickle.dumps(blobs))
    torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3}, "checkpoint.pth")
    given = [words for words in commands("import", "import") if "--weights" in words]
    there = [words for words in given if Path(words[words.index("--weights") + 1]).exists()]
    assert len(there) == 3
    for words in there:
        run("import", words)
        net = artifact.load(words[words.index("--output") + 1])[0]
        assert torch.equal(net.state_dict()["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])


def test_every_command_is_understood_and_every_page_has_one() -> None:
    pages = sorted(page.stem for page in DOCS.glob("*.md"))
    assert pages == ["detectors", "detectron2", "import", "mmdetection", "onnx", "timm", "torchvision", "transformers"]
    for page in pages:
        job, model = ("import", Import) if page == "import" else ("export", Export)
        assert commands(page, job)
        for words in commands(page, job):
            parse(model, words)
    executed("import")
    sources = {words[words.index("--source") + 1] for words in commands("import", "import")}
    assert sources == {"torchvision", "timm", "transformers", "detectron2", "mmdetection", "cifar", "caffe"}
