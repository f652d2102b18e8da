"""What the jobs `export` and `import` are told. Imports neither torch nor anything slow."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from backbone.options import Strict


class Export(Strict):
    """Write an artifact as another framework loads it, and prove that it computes the same there."""

    artifact: str
    """Folder or URL of the artifact."""

    to: Literal["torchvision", "torchvision-detection", "timm", "transformers", "detectron2", "mmdetection", "onnx"]
    """The framework. Of a detector: onnx, or torchvision-detection for its own constructors."""

    output: str
    """Folder or URL to write to. Its files name this place, so give it as you will load it."""

    license: str = "unknown"
    """Licence of the weights, for the model card, in Hugging Face's words: apache-2.0, cc-by-nc-4.0, ..."""


class Import(Strict):
    """Make a backbone artifact of another framework's weights, every key accounted for."""

    source: Literal["torchvision", "timm", "transformers", "detectron2", "mmdetection", "cifar", "caffe"]
    """Whose names the weights have. caffe: MSRA's nets as Detectron blobs, LAYER.INDEX blobs or torchvision's names.
    cifar: nets of 6n+2 layers from repositories for CIFAR. torchvision: those of most other training code too."""

    model: str = ""
    """timm: a net by its name there, such as resnext50_32x4d, which timm builds; any with four stages at strides 4, 8,
    16 and 32. Empty: a net of raybone's own."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """model: what its builder is told beside the number of classes: --arguments.drop_path_rate 0.1."""

    random: bool = False
    """model: with random weights instead of a file's, to train from scratch or to try it."""

    weights: str = Field("", validate_default=True)
    """File of any name (of torch.save, .safetensors, .npz, a pickle), or folder with one such file and the framework's
    config, or the index of shards. Nothing that lies in it is run."""

    output: str
    """Folder or URL of the artifact to write."""

    prefix: tuple[str, ...] = ()
    """What stands before each key, such as `module.` or `backbone.body.`; it is cut off. Several where the net lies in
    two places, such as `backbone. roi_heads.` of a C4 detector: of each key the first that fits."""

    drop: tuple[str, ...] = ()
    """First letters of keys to leave out, such as `rpn. roi_heads.`; each must be there, and none in the net itself."""

    entry: str = ""
    """Part of a checkpoint that holds the weights, such as `state_dict` or `model`."""

    stride_in_1x1: Literal["", "true", "false"] = ""
    """Where bottlenecks have stride 2, if no config beside the weights says. Nothing in the weights themselves does."""

    shortcut_pad: Literal["", "end", "both"] = ""
    """Where shortcuts without weights (option A) put their zero channels: behind, or half before and half behind."""

    dilation: Literal["", "none", "dropped"] = ""
    """Asked of bodies of segmenters and DETR, whose weights do not say it. none: it had none. dropped: it had, which
    no net has here; C4 and C5 are then not the maps it was trained with."""

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

    @field_validator("weights")
    @classmethod
    def _given(cls, value: str, info: ValidationInfo) -> str:
        if not value and not info.data.get("random"):
            raise ValueError("name a file or folder of weights, or with --model give --random true to draw them")
        return value

    @model_validator(mode="after")
    def _possible(self) -> "Import":
        if self.model and self.source != "timm":
            raise ValueError(f"model {self.model}: timm builds it; give --source timm")
        if not self.model and (self.random or self.arguments):
            raise ValueError("random, arguments: of nets that timm builds; name one by --model")
        if self.random and self.weights:
            raise ValueError("random, weights: give one of them")
        own = [name for name in ("stride_in_1x1", "shortcut_pad", "dilation") if getattr(self, name)]
        if self.model and own:
            raise ValueError(f"{', '.join(own)}: of raybone's own nets; timm knows {self.model}, leave it out")
        return self
