"""Checkpoints as training code leaves them are imported with the first error's words, typed as they stand there."""

import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone import artifact
from backbone.cli import parse
from backbone.errors import UserError
from backbone.interop.importing import run
from backbone.interop.layouts import Layout, cut, dilated, layouts
from backbone.interop.options import Import
from tests.backbone.interop.saved import (
    CLASSIFIER,
    HISTORY,
    PROJECTION,
    SMALL,
    Tree,
    barlow_twins,
    behind,
    body,
    both_names,
    detectron2_body,
    detectron2_c4,
    detectron2_fpn,
    dino,
    heads,
    lightning,
    mmdetection,
    moco,
    optimizer,
    sequential,
    simclr,
    swav,
    timm,
    torchvision_detector,
    torchvision_references,
    transformers_detr,
    vissl,
    whole,
)


@pytest.fixture(autouse=True)
def history_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of mmengine's name, for as long as its checkpoints are written.

    Its own keeps its methods by name in each object, so that the pickle asks for `getattr`.
    """

    class HistoryBuffer:
        def __init__(self) -> None:
            self._max_length, self._log_history, self._count_history = 1000000, np.ones(3), np.ones(3)
            self._statistics_methods = {"min": HistoryBuffer.min}

        def min(self) -> None: ...

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = HISTORY, "HistoryBuffer"
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = HISTORY, "HistoryBuffer.min"
    for name in ("mmengine", "mmengine.logging", HISTORY):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[HISTORY].HistoryBuffer = HistoryBuffer  # ty: ignore[unresolved-attribute]


CASES: dict[str, tuple[str, Callable[[], Tree], int]] = {
    "checkpoint.pth": ("torchvision", torchvision_references, 5),
    "checkpoint-12.pth.tar": ("timm", timm, 5),
    "epoch=3-step=400.ckpt": ("torchvision", lightning, 5),
    "best": ("torchvision", both_names, 5),
    "moco_v1.pth.tar": ("torchvision", lambda: moco(CLASSIFIER), 1),
    "moco_v2_800ep_pretrain.pth.tar": ("torchvision", lambda: moco(PROJECTION), 1),
    "swav_800ep_pretrain.pth.tar": ("torchvision", swav, 1),
    "dino_resnet50_pretrain_full_checkpoint.pth": ("torchvision", dino, 1),
    "barlow_twins.pth": ("torchvision", barlow_twins, 1),
    "simclr_0100.pth.tar": ("torchvision", simclr, 1),
    "model_final.pth": ("detectron2", detectron2_fpn, 1),
    "model_c4.pth": ("detectron2", detectron2_c4, 1),
    "epoch_12.pth": ("mmdetection", lambda: mmdetection(""), 1),
    "detector.th": ("torchvision", torchvision_detector, 1),
    "vissl.torch": ("torchvision", vissl, 1),
    "lightly.pt": ("torchvision", sequential, 1),
    "detr.bin": ("transformers", transformers_detr, 1),
}


def commands(error: UserError) -> list[list[str]]:
    """The words of each command that an error spells out."""
    lines = [line.strip() for line in str(error).splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("python jobs/import.py ")]


@pytest.mark.parametrize("name", CASES)
def test_the_first_error_spells_out_what_imports_it(name: str, tmp_path: Path) -> None:
    source, make, classes = CASES[name]
    file, out = tmp_path / name, tmp_path / "artifact"
    torch.save(make(), file, _use_new_zipfile_serialization=len(name) % 2 == 0)  # both forms, by turns
    with pytest.raises(UserError) as error:
        run(Import.model_validate({"source": source, "weights": str(file), "output": str(out)}))
    first = commands(error.value)[0]
    assert "optimizer" not in " ".join(first)
    options, _ = parse(Import, first)
    run(options)
    net = artifact.load(out)[0]
    assert (net.options.depth, net.options.width, net.num_classes) == (50, 0.125, classes)
    for place in ("conv1.weight", "layer4.2.bn3.running_var"):
        assert torch.equal(net.state_dict()[place], whole()[place]), "the net that was trained, not its copy"


def test_every_command_of_an_error_works(tmp_path: Path) -> None:
    """Also those that come second: the copy, and the other way of pixels."""
    for name, source, tree in (
        ("moco", "torchvision", moco(PROJECTION)),
        ("final", "detectron2", detectron2_fpn()),
        ("epoch", "mmdetection", mmdetection("")),
    ):
        torch.save(tree, tmp_path / name)
        given = {"source": source, "weights": str(tmp_path / name), "output": str(tmp_path / "artifact")}
        with pytest.raises(UserError) as error:
            run(Import.model_validate(given))
        found = commands(error.value)
        assert len(found) == 2
        outcomes = [run(parse(Import, words)[0]).found for words in found]
        if name == "moco":
            assert not torch.equal(*(o.net.state_dict()["conv1.weight"] for o in outcomes))
        else:
            assert {o.net.options.stride_in_1x1 for o in outcomes} == {True, False}
            assert {o.inputs.channel_order for o in outcomes} == {"RGB", "BGR"}


def test_what_was_typed_is_kept_and_what_was_wrong_is_not(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    torch.save(detectron2_fpn(), file)
    given = {
        "source": "detectron2",
        "weights": str(file),
        "output": "o",
        "prefix": ("backbone.",),
        "entry": "state_dict",
    }
    with pytest.raises(UserError, match="--entry state_dict: there is no state_dict; it has model, opt") as error:
        run(Import.model_validate({**given, "channel_order": "RGB", "size": 96}))
    (words,) = commands(error.value)  # of the two ways of pixels, one fits what was said
    options, _ = parse(Import, words)
    assert (options.weights, options.size, options.channel_order) == (str(file), 96, "RGB")
    assert (options.entry, options.prefix) == ("model", ("backbone.bottom_up.",))
    assert options.stride_in_1x1 == "false"
    # Said all but one: the rest is asked, and the layout is left as it is.
    given |= {
        "prefix": options.prefix,
        "drop": options.drop,
        "entry": "model",
        "mean": options.mean,
        "std": options.std,
    }
    with pytest.raises(UserError, match=r"^stride_in_1x1: no config beside the weights says") as error:
        run(Import.model_validate({**given, "channel_order": "RGB"}))
    (words,) = commands(error.value)
    assert parse(Import, words)[0] == Import.model_validate(given | {"channel_order": "RGB", "stride_in_1x1": "false"})


CONFIG = """
model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(type='ResNet', depth=50, style='caffe'{}))
"""


@pytest.mark.parametrize("words", ["cfg", "config"])
def test_mmdetections_checkpoints_hold_their_config(words: str, tmp_path: Path) -> None:
    tree = mmdetection(CONFIG.format(""))
    if words == "config":  # before 3.0
        text = CONFIG.format("").replace("data_preprocessor", "unread")
        norm = "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\n"
        tree["meta"] = {"epoch": 12, "config": norm + text}
    torch.save(tree, tmp_path / "epoch_12.pth")
    given = {"source": "mmdetection", "weights": str(tmp_path / "epoch_12.pth"), "output": str(tmp_path / "artifact")}
    with pytest.raises(UserError) as error:
        run(Import.model_validate(given))
    (words_,) = commands(error.value)
    assert not {"--mean", "--stride_in_1x1"} & set(words_)
    done = run(parse(Import, words_)[0])
    assert done.found.net.options.stride_in_1x1
    assert done.found.inputs.channel_order == ("RGB" if words == "cfg" else "BGR")
    assert done.found.inputs.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-4)
    assert done.found.inputs.std == pytest.approx((0.229, 0.224, 0.225) if words == "cfg" else (1 / 255,) * 3)
    assert "its config was read from the checkpoint itself (meta)" in done.notes
    assert any(f"{HISTORY}.HistoryBuffer" in note for note in done.notes)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    torch.save(torchvision_references(), tmp_path / "c.pth")
    done = run(Import(source="torchvision", weights=str(tmp_path / "c.pth"), output=str(tmp_path / "a"), entry="model"))
    assert "not read, beside model: optimizer, lr_scheduler, epoch, args, model_ema" in done.notes
    assert "objects in it that were not run: argparse.Namespace" in done.notes
    assert (
        "as torchvision documents of its own weights, for nothing else says it: channel_order, mean, std" in done.notes
    )


SEGMENTERS = {
    "deeplab": heads("classifier.0.convs.0.0.weight", "classifier.4.bias", "aux_classifier.0.weight"),
    "fcn without an auxiliary head": heads("classifier.0.weight", "classifier.4.weight"),
    "mmsegmentation": heads("decode_head.conv_seg.weight", "auxiliary_head.conv_seg.weight"),
    "detr": heads("transformer.encoder.layers.0.linear1.weight", "class_embed.weight"),
}


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_dilation_is_asked_and_never_lost_in_silence(kind: str, tmp_path: Path) -> None:
    torch.save(behind("backbone.", body()) | SEGMENTERS[kind], tmp_path / "net.pth")
    given = {"source": "torchvision", "weights": str(tmp_path / "net.pth"), "output": str(tmp_path / "artifact")}
    with pytest.raises(UserError) as error:
        run(Import.model_validate(given))
    found = commands(error.value)
    assert [words[-2:] for words in found] == [["--dilation", "dropped"], ["--dilation", "none"]]
    with pytest.raises(UserError, match=r"^dilation: .*this is the body of .*no net here is dilated"):
        run(parse(Import, found[0][:-2])[0])
    notes = [run(parse(Import, words)[0]).notes for words in found]
    assert any("its dilation was dropped, as asked" in note for note in notes[0])
    assert not any("dilation" in note for note in notes[1])


def test_a_config_that_says_dilated(tmp_path: Path) -> None:
    tree = mmdetection(CONFIG.format(", strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)"))
    torch.save(tree, tmp_path / "iter_80000.pth")
    given = {"source": "mmdetection", "weights": str(tmp_path / "iter_80000.pth"), "output": str(tmp_path / "artifact")}
    layout = {"entry": "state_dict", "prefix": ("backbone.",), "drop": ("neck.", "rpn_head.", "roi_head.")}
    with pytest.raises(UserError, match=r"dilation: .*one whose config says so"):
        run(Import.model_validate(given | layout))
    with pytest.raises(UserError, match=r"dilation: none is given, the config beside the weights has one"):
        run(Import.model_validate(given | layout | {"dilation": "none"}))
    assert run(Import.model_validate(given | layout | {"dilation": "dropped"})).found.net.options == SMALL.model_copy(
        update={"stride_in_1x1": True}
    )


def test_detectors_and_classifiers_are_not_asked() -> None:
    for tree in (torchvision_detector(), detectron2_fpn()["model"], whole(), swav(), mmdetection("")["state_dict"]):
        assert dilated(tree) == ""


def test_no_key_within_the_net_is_dropped() -> None:
    values = behind("model.", whole())
    with pytest.raises(UserError, match=r"--drop model.layer4.: .* lie in the net itself, which without them"):
        cut(values, Layout("torchvision", prefix=("model.",), drop=("model.layer4.",)), "x")
    kept, notes = cut(values, Layout("torchvision", prefix=("model.",), drop=("model.fc.",)), "x")
    assert kept.keys() == body().keys()
    assert notes == ["left out, as asked: model.fc.* (2 keys)"]


def test_nets_are_found_by_the_names_of_every_framework() -> None:
    tree = {"state_dict": behind("net.", detectron2_body()), "ema": behind("net.", detectron2_body())}
    first, second = layouts(tree, "torchvision")
    assert (first.source, first.entry, first.prefix, first.drop) == ("detectron2", "state_dict", ("net.",), ())
    assert second.copy
    assert list(layouts({"optimizer": optimizer()}, "torchvision")) == []
