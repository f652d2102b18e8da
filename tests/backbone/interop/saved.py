"""Checkpoints as training code leaves them, of a small net: what each saves, and what it calls its modules.

Written down from the published code of each.
"""

import argparse
import collections
import sys
from typing import Any

import torch
from torch import Tensor

from backbone.interop import keys
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
