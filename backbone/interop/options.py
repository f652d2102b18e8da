"""What the jobs `export` and `import` are told. Imports neither torch nor anything slow."""

from typing import Literal

from backbone.options import Strict


class Export(Strict):
    """Write a backbone artifact as another framework loads it, and prove that it computes the same there."""

    artifact: str
    """Folder or URL of the artifact."""

    to: Literal["torchvision", "torchvision-detection", "timm", "transformers", "detectron2", "mmdetection", "onnx"]
    """The framework."""

    output: str
    """Folder or URL to write to. Its files name this place, so give it as you will load it."""

    license: str = "unknown"
    """Licence of the weights, for the model card, in Hugging Face's words: apache-2.0, cc-by-nc-4.0, ..."""


class Import(Strict):
    """Make a backbone artifact of another framework's weights, every key accounted for."""

    source: Literal["torchvision", "timm", "transformers", "detectron2", "mmdetection", "caffe"]
    """Whose names the weights have. caffe: MSRA's nets as Detectron blobs, LAYER.INDEX blobs or torchvision's names."""

    weights: str
    """File (.safetensors, .pth, .pt, .bin, .ckpt, .pkl, .npz) or folder with one such file and the framework's config.
    Pickles are read without running them."""

    output: str
    """Folder or URL of the artifact to write."""

    prefix: str = ""
    """What stands before each key, such as `module.` or `backbone.body.`; it is cut off."""

    drop: tuple[str, ...] = ()
    """First letters of keys to leave out, such as `rpn. roi_heads.`; each must be there."""

    entry: str = ""
    """Part of a checkpoint that holds the weights, such as `state_dict` or `model`."""

    stride_in_1x1: Literal["", "true", "false"] = ""
    """Where bottlenecks have stride 2, if no config beside the weights says. Nothing in the weights themselves does."""

    channel_order: Literal["", "RGB", "BGR"] = ""
    """Order of the channels that the net reads, if no config beside the weights says."""

    mean: tuple[float, ...] = ()
    """Mean of red, green, blue on the 0..1 scale, if no config beside the weights says."""

    std: tuple[float, ...] = ()
    """Deviation of red, green, blue on the 0..1 scale; 1/255 thrice where pixels of 0..255 are not scaled."""

    size: int = 0
    """Pixels a side of evaluation images. 0: as the config says, else 224."""

    crop_pct: float = 0.0
    """Share of the resized image's side that is cut out. 0: as the config says, else 0.875."""

    classes: str = ""
    """Text file with a class a line. Empty: as the config says, else 0, 1, 2, ..."""
