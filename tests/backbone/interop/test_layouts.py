"""Checkpoints as training code leaves them are imported with the words of the first error, typed as they stand there.

The layouts are written down from the published code of each: what it saves, and what it calls its modules.
"""

import argparse
import collections
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backbone import artifact
from backbone.cli import parse
from backbone.errors import UserError
from backbone.interop import keys
from backbone.interop.importing import run
from backbone.interop.layouts import Layout, cut, dilated, layouts
from backbone.interop.options import Import
from backbone.options import NetOptions
from tests.backbone.interop.conftest import net_of

SMALL = NetOptions(depth=50, width=0.125)
Tree = dict[str, Any]


def whole() -> dict[str, Tensor]:
    return dict(net_of(SMALL).state_dict())


def body() -> dict[str, Tensor]:
    return {name: t for name, t in whole().items() if not name.startswith("fc.")}


def other(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy that is not the same, so that taking the wrong one shows."""
    return {name: t + 1 if t.is_floating_point() else t for name, t in tensors.items()}


def behind(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in tensors.items()}


def heads(*names: str) -> dict[str, Tensor]:
    return {name: torch.ones(2, 2) for name in names}


def optimizer() -> Tree:
    """With momentum, which are tensors too."""
    state = {i: {"momentum_buffer": t} for i, t in enumerate(body().values())}
    return {"state": state, "param_groups": [{"lr": 0.1, "params": list(state)}]}


ARGS = argparse.Namespace(lr=0.1, model="resnet50")
CLASSIFIER = {"fc.weight": torch.ones(128, 256), "fc.bias": torch.ones(128)}
PROJECTION = heads("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")


def detectron2_body() -> dict[str, Tensor]:
    return {keys.detectron2(name): t for name, t in body().items() if "tracked" not in name}


def torchvision_references() -> Tree:
    ema = {"n_averaged": torch.tensor(5), **behind("module.", other(whole()))}
    return {
        "model": whole(),
        "optimizer": optimizer(),
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": ARGS,
        "model_ema": ema,
    }


def timm() -> Tree:
    ema = other(whole())
    tree = {
        "epoch": 12,
        "arch": "resnet50",
        "state_dict": whole(),
        "optimizer": optimizer(),
        "version": 2,
        "args": ARGS,
    }
    return {**tree, "amp_scaler": {"scale": 65536.0}, "state_dict_ema": ema, "metric": 71.2}


def lightning() -> Tree:
    return {
        "epoch": 3,
        "global_step": 400,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": behind("model.", whole()) | heads("criterion.weight"),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7)}},
        "optimizer_states": [optimizer()],
        "lr_schedulers": [],
        "hyper_parameters": ARGS,
    }


def both_names() -> Tree:
    """A model under two names, one of them an older habit's."""
    averaged = other(whole())
    return {"model": "resnet50", "state_dict": whole(), "model_ema": averaged, "optimizer": optimizer()}


def moco(head: dict[str, Tensor]) -> Tree:
    """v1 has a linear layer as its head, v2 two."""
    trained, copy = body() | head, other(body()) | head
    state = behind("module.encoder_k.", copy) | behind("module.encoder_q.", trained)  # the copy first
    state |= {"module.queue": torch.ones(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer()}


def swav() -> Tree:
    return behind("module.", body()) | heads("module.projection_head.0.weight", "module.prototypes.weight")


def dino() -> Tree:
    head = heads("mlp.0.weight", "last_layer.weight_g", "last_layer.weight_v")
    # Both are wrapped where the net has batch norms; the teacher of a vision transformer is not.
    student = behind("module.backbone.", other(body())) | behind("module.head.", head)
    teacher = behind("module.backbone.", body()) | behind("module.head.", head)
    loss = {"center": torch.zeros(1, 8)}
    return {
        "student": student,
        "teacher": teacher,
        "optimizer": optimizer(),
        "epoch": 9,
        "args": ARGS,
        "dino_loss": loss,
        "fp16_scaler": {"scale": 65536.0},
    }


def barlow_twins() -> Tree:
    norm = {"module.bn.running_mean": torch.zeros(4), "module.bn.running_var": torch.ones(4)}
    state = behind("module.backbone.", body()) | heads("module.projector.0.weight", "module.projector.1.bias") | norm
    return {"epoch": 100, "model": state, "optimizer": optimizer()}


def simclr() -> Tree:
    return {"epoch": 100, "arch": "resnet50", "state_dict": behind("backbone.", body() | PROJECTION), "optimizer": {}}


def detectron2_fpn() -> Tree:
    names = [f"backbone.fpn_{kind}{i}" for kind in ("lateral", "output") for i in (2, 3, 4, 5)]
    names = [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    names += ["proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.weight"]
    model = behind("backbone.bottom_up.", detectron2_body()) | heads(*names)
    return {"model": model, "optimizer": optimizer(), "scheduler": {"last_epoch": 9}, "iteration": 89999}


def detectron2_c4() -> Tree:
    """Its last stage lies among its heads."""
    last = {name: t for name, t in detectron2_body().items() if name.startswith("res5.")}
    rest = {name: t for name, t in detectron2_body().items() if name not in last}
    names = ("proposal_generator.rpn_head.conv.weight", "roi_heads.box_predictor.cls_score.weight")
    return {"model": behind("backbone.", rest) | behind("roi_heads.", last) | heads(*names), "iteration": 89999}


HISTORY = "mmengine.logging.history_buffer"
MMDET = ("neck.fpn_convs.0.conv.weight", "rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight")


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


def mmdetection(config: str) -> Tree:
    history = sys.modules[HISTORY].HistoryBuffer()
    meta = {"epoch": 12, "experiment_name": "x", **({"cfg": config} if config else {})}
    return {
        "meta": meta,
        "state_dict": behind("backbone.", body()) | heads(*MMDET),
        "message_hub": {"log_scalars": collections.OrderedDict(loss=history)},
        "optimizer": optimizer(),
    }


def torchvision_detector() -> Tree:
    return behind("backbone.body.", body()) | heads(
        "backbone.fpn.inner_blocks.0.0.weight", "rpn.head.conv.0.0.weight", "roi_heads.box_head.fc6.weight"
    )


def vissl() -> Tree:
    trunk = behind("_feature_blocks.", body())
    inner = {"trunk": trunk, "heads": heads("0.clf.0.weight")}
    return {"classy_state_dict": {"base_model": {"model": inner}, "optim": optimizer()}}


def sequential() -> Tree:
    return {
        "state_dict": {f"backbone.{keys.sequential(n)}": t for n, t in body().items()} | heads("projector.0.weight")
    }


def transformers_detr() -> Tree:
    names = {keys.transformers_backbone(name): t for name, t in body().items() if "tracked" not in name}
    return behind("model.backbone.conv_encoder.model.", names) | heads("class_labels_classifier.weight")


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
