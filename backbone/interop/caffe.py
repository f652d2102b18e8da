"""MSRA's Caffe nets as they are passed around: Detectron's blobs, LAYER.INDEX blobs, or torchvision's names.

All were trained on BGR of 0..255 less a mean, with stride in the first 1x1, and have nothing beside them that says so.
"""

from torch import Tensor

from backbone.inputs import IMAGENET_MEAN
from backbone.interop import keys
from backbone.interop.common import Facts

# Detectron2's PIXEL_MEAN for these, BGR 103.530, 116.280, 123.675, is ImageNet's; std is 1 on the 0..255 scale.
DEFAULTS = Facts(stride_in_1x1=True, channel_order="BGR", mean=IMAGENET_MEAN, std=(1 / 255,) * 3)
EPS = 1e-5
NOTE = "Caffe pools the stem without padding, rounding up; torchvision, detectron2 and this net pad: windows 1 px off"


def convert(tensors: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Blobs -> our names and values, and what was done to them.

    Raises:
        UserError: blobs that no such net has.
    """
    if "conv1.weight" in tensors:
        names = keys.explained(tensors, keys.same, where)
        return {names[name]: t for name, t in tensors.items()}, [NOTE]
    if "conv1_w" in tensors:
        tensors = {{"pred_w": "fc1000_w", "pred_b": "fc1000_b"}.get(name, name): t for name, t in tensors.items()}
        biases = {name: t for name, t in tensors.items() if name.endswith(("conv1_b", *_BRANCHES_B)) and "_bn_" not in name}
        names = keys.explained(tensors.keys() - biases.keys(), keys.caffe2, where)
        found = {names[name]: tensors[name].reshape(_shape(tensors[name])) for name in names}
        bias_of = {keys.inverse(keys.caffe2).get(f"{name[:-1]}w", name): t for name, t in biases.items()}
        return _affine(found, bias_of, where)
    return _layers(tensors, where)


_BRANCHES_B = tuple(f"branch{branch}_b" for branch in ("1", "2a", "2b", "2c"))
