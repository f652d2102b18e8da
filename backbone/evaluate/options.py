"""What `jobs/evaluate.py --backbone` is told. Imports nothing slow."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from backbone.compute import Compute, Scaling
from backbone.data.options import Data, SyntheticData
from backbone.options import Strict

Protocol = Literal["1-crop", "10-crop", "multi-scale"]


class BackboneEvaluation(Strict):
    """Judge backbones as classifiers: each alone and, where there are several, their ensemble. The command line gives
    the fields, or a YAML file (--config FILE).

    Data that are not given are those the first was trained with. Images that cannot be read are left out, counted and
    named.
    """

    backbone: tuple[str, ...] = Field(min_length=1)
    """Backbone artifacts: folders or URLs. They are verified. Several: their ensemble is judged too."""

    protocols: tuple[Protocol, ...] = Field(("1-crop",), min_length=1)
    """1-crop: the evaluation view of training. 10-crop: four corners and centre of the image at shorter side 256 for a
    net of 224 px, and their mirror images (AlexNet's). multi-scale: whole images, fully convolutional, at several
    sizes, and their mirror images (section 3.4). Images are read once for all of them."""

    scales: tuple[int, ...] = Field((224, 256, 384, 480, 640), min_length=1)
    """multi-scale: shorter sides for a net of 224 px. For a net of another size they are in proportion."""

    by_position: bool = False
    """Take label k of the data for class k of the nets, whatever their names: the usual order of ImageNet's 1000."""

    data: Data = SyntheticData()
    """Only `val` is read. size and crop_pct: judge at others than the net's own."""

    batch: int = Field(32, ge=1)
    """Images read at once by each worker; through the net go as many pixels at a time as so many of its own size."""

    compute: Compute = Compute(precision="fp32")
    scaling: Scaling = Scaling(num_workers=0)

    output: str = ""
    """Folder or URL of the results. Empty: `evaluation-<protocols>-<fingerprint of the data>` beside the first
    artifact, with `ensemble` and a fingerprint of its members where there are several."""

    @model_validator(mode="after")
    def _possible(self) -> "BackboneEvaluation":
        check_shown(self.backbone, self.protocols, self.scales, self.compute, self.scaling)
        return self


SCALES: tuple[int, ...] = BackboneEvaluation.model_fields["scales"].default


def check_shown(
    nets: Sequence[str],
    protocols: Sequence[Protocol],
    scales: Sequence[int],
    compute: Compute,
    scaling: Scaling,
) -> None:
    """ValueError where nets cannot be shown images so: one of them twice, by scales that are too small or are not read,
    or computed as nothing can be that changes its shape."""
    if len(set(nets)) < len(nets):
        raise ValueError("backbone: one is named twice; an ensemble counts each net once")
    if min(scales) < 224:
        raise ValueError(f"scales {list(scales)}: below 224 an image is smaller than what the net reads")
    if tuple(scales) != SCALES and "multi-scale" not in protocols:
        raise ValueError("scales are read by protocol multi-scale only")
    if compute.compile != "none":
        raise ValueError("compute.compile: shapes change with every image; leave it off")
    if compute.precision == "fp16" and not scaling.use_gpu:
        raise ValueError("compute.precision fp16 needs scaling.use_gpu; use bf16 or fp32 on CPU")
