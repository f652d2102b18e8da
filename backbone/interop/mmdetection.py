"""mmdetection: the file its ResNet loads, and the part of a config that belongs to it."""

import ast
from dataclasses import replace
from typing import Any

from backbone.interop.common import Facts, Files, Source, saved, state, three


def write(source: Source) -> Files:
    """`backbone.pth`, without `fc`, and `backbone.py`."""
    tensors = {name: t for name, t in state(source.net).items() if not name.startswith("fc.")}
    text = "# The part of a detector's config that belongs to these weights; README.md has the whole.\n"
    return {"backbone.pth": saved(tensors), "backbone.py": (text + model_text(source)).encode()}


def model_text(source: Source) -> str:
    """`model = dict(...)`. mmdetection reads BGR of 0..255; `bgr_to_rgb` comes before mean and std."""
    net, i = source.net, source.inputs
    flip = i.channel_order == "BGR"
    mean, std = ([255 * v for v in values] for values in (i.mean, i.std))
    channels = [stage.channels for stage in net.stages.values()]
    return f"""model = dict(
    data_preprocessor=dict(
        mean={mean[::-1] if flip else mean},
        std={std[::-1] if flip else std},
        bgr_to_rgb={not flip},
    ),
    backbone=dict(
        type="ResNet",
        depth={source.options.depth},
        stem_channels={net.state_dict()["conv1.weight"].shape[0]},
        base_channels={channels[0] // (4 if source.options.depth >= 50 else 1)},
        style="{"caffe" if source.options.stride_in_1x1 else "pytorch"}",
        # Statistics, gamma and beta stay as pretrained, as in the paper.
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        frozen_stages=1,
        init_cfg=dict(type="Pretrained", checkpoint="{source.place}/backbone.pth"),
    ),
    neck=dict(in_channels={channels}),  # of an FPN; without one, leave it out
)
"""


def snippet(source: Source) -> str:
    """The config of a detector that uses it, for `python tools/train.py`."""
    return f"""
_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"]
{model_text(source)}
""".strip()


def facts(files: Files) -> Facts:
    """What `model = dict(...)` of a config says, as far as it does. The config is read, not run."""
    texts = [data for name, data in files.items() if name.endswith(".py")]
    if not texts:
        return Facts()
    if len(texts) > 1:
        raise ValueError("more than one Python file beside the weights")
    text = texts[0].decode()
    model = literal_model(text)
    given, net = model.get("data_preprocessor"), model.get("backbone", {})
    if given is None:  # before 3.0 it stood in the pipeline
        given = literal(text, "img_norm_cfg") or {}
        given = {**given, "bgr_to_rgb": given.get("to_rgb", True)}
    if net.get("style", "pytorch") not in ("pytorch", "caffe"):
        raise ValueError(f"style {net['style']!r}")
    said = Facts(stride_in_1x1=net["style"] == "caffe" if "style" in net else None, dilation=_dilation(net))
    if "mean" not in given or "std" not in given:
        return said
    rgb = bool(given.get("bgr_to_rgb", False))
    mean, std = (tuple(v / 255 for v in three(given[key])) for key in ("mean", "std"))
    return replace(
        said,
        channel_order="RGB" if rgb else "BGR",
        mean=mean if rgb else mean[::-1],
        std=std if rgb else std[::-1],
    )


def _dilation(net: dict[str, Any]) -> str | None:
    """mmdetection's ResNet has `dilations` and `strides` of four stages; segmenters set them."""
    if not net:
        return None
    strides = list(net.get("strides", ()))
    return "none" if set(net.get("dilations", ())) <= {1} and strides == [1, 2, 2, 2][: len(strides)] else "dilated"


def literal_model(text: str) -> dict[str, Any]:
    """`model` of a config; ValueError where it has none, or not in literals and `dict(...)`."""
    model = literal(text, "model")
    if model is None:
        raise ValueError("it has no `model = dict(...)`")
    return model


def literal(text: str, name: str) -> Any:
    """What a config assigns to a name, in literals and `dict(...)`; None: nothing. ValueError for anything else."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [name]:
            return _literal(node.value)
    return None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(k.arg): _literal(k.value) for k in node.keywords if k.arg}
    if isinstance(node, ast.List | ast.Tuple):  # with dict(...) in them, as the heads of a cascade
        return [_literal(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): _literal(value) for key, value in pairs if key}
    return ast.literal_eval(node)
