"""detectron2: a `.pkl` of its own format and the part of a config that belongs to it."""

from typing import Any

import yaml

from backbone.interop import keys
from backbone.interop.common import Facts, Files, Source, state, three
from backbone.interop.pickles import pickled


def write(source: Source) -> Files:
    """`model.pkl` and `backbone.yaml`. detectron2 reads pixels of 0..255 in the order of INPUT.FORMAT."""
    net, i = source.net, source.inputs
    arrays = {
        keys.detectron2(name): t.numpy()
        for name, t in state(net).items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    bottleneck = source.options.depth >= 50
    base = net.stages["C2"].channels
    mean, std = ([255 * v for v in values] for values in (i.mean, i.std))
    config: dict[str, Any] = {
        "MODEL": {
            # Without it, the weights of the config that this is merged into would be loaded.
            "WEIGHTS": f"{source.place}/model.pkl",
            "PIXEL_MEAN": mean[::-1] if i.channel_order == "BGR" else mean,
            "PIXEL_STD": std[::-1] if i.channel_order == "BGR" else std,
            "BACKBONE": {"FREEZE_AT": 2},
            "RESNETS": {
                "DEPTH": source.options.depth,
                "STRIDE_IN_1X1": source.options.stride_in_1x1,
                "NORM": "FrozenBN",
                "STEM_OUT_CHANNELS": net.state_dict()["conv1.weight"].shape[0],
                "RES2_OUT_CHANNELS": base,
                "NUM_GROUPS": 1,
                "WIDTH_PER_GROUP": base // 4 if bottleneck else base,
            },
        },
        "INPUT": {"FORMAT": i.channel_order},
    }
    model = {"model": arrays, "__author__": "raybone", "matching_heuristics": True}
    return {"model.pkl": pickled(model), "backbone.yaml": yaml.safe_dump(config, sort_keys=False).encode()}


def snippet(source: Source) -> str:
    """How to load it."""
    return f"""
from detectron2 import model_zoo
from detectron2.config import get_cfg

cfg = get_cfg()
cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
cfg.merge_from_file("{source.place}/backbone.yaml")  # after the detector's, so that it wins
""".strip()


def facts(files: Files) -> Facts:
    """What a YAML config beside the weights says, as far as it does."""
    texts = [data for name, data in files.items() if name.endswith((".yaml", ".yml"))]
    if not texts:
        return Facts()
    if len(texts) > 1:
        raise ValueError("more than one YAML file beside the weights")
    tree = yaml.safe_load(texts[0])
    model, order = tree.get("MODEL", {}), tree.get("INPUT", {}).get("FORMAT")
    if order not in (None, "RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT {order}")
    mean, std = model.get("PIXEL_MEAN"), model.get("PIXEL_STD")
    if (mean or std) and order is None:
        raise ValueError("PIXEL_MEAN without INPUT.FORMAT, so of unknown order")
    nets = model.get("RESNETS", {})
    return Facts(
        stride_in_1x1=nets.get("STRIDE_IN_1X1"),
        dilation="dilated" if nets.get("RES5_DILATION", 1) != 1 else "none" if nets else None,
        channel_order=order,
        mean=_rgb(mean, order) if mean else None,
        std=_rgb(std, order) if std else None,
    )


def _rgb(values: list[float], order: str) -> tuple[float, ...]:
    numbers = tuple(v / 255 for v in three(values))
    return numbers[::-1] if order == "BGR" else numbers
