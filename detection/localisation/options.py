"""What `jobs/evaluate.py --localiser` is told. Imports nothing slow."""

from typing import Literal

from pydantic import Field, model_validator

from backbone.compute import Compute, Scaling
from backbone.evaluate.options import check_shown
from backbone.options import Strict
from detection.localisation.recipe import LocData, OneObjectData


class LocaliserEvaluation(Strict):
    """Judge localisers as ImageNet LOC is judged: each alone and, where there are several, their ensemble. The command
    line gives the fields, or a YAML file (--config FILE)."""

    localiser: tuple[str, ...] = Field(min_length=1)
    """Artifacts of jobs/localise.py, of kind rpn or rcnn: folders or URLs. They are verified."""

    backbone: tuple[str, ...] = Field(min_length=1)
    """Backbone artifacts, which say the classes. Several: the mean of their scores does."""

    proposals: tuple[str, ...] = ()
    """Artifacts of the localisers whose proposals those of kind rcnn read, where they lie no longer where their recipes
    say."""

    protocols: tuple[Literal["1-crop", "dense"], ...] = Field(("1-crop", "dense"), min_length=1)
    """1-crop: the central crop of the classifier's evaluation. dense: the whole image, fully convolutional, at several
    scales."""

    scales: tuple[int, ...] = Field((224, 256, 384, 480, 640), min_length=1)
    """dense: shorter sides for a net of 224 px. For a net of another size they are in proportion."""

    by_position: bool = False
    """Take label k of the data for class k of the nets, whatever their names: the usual order of ImageNet's 1000."""

    data: LocData = OneObjectData()
    """Only validation images are read."""

    batch: int = Field(32, ge=1)
    """Images read at once by each worker; through the net go as many pixels at a time as so many of its own size."""

    compute: Compute = Compute(precision="fp32")
    scaling: Scaling = Scaling(num_workers=0)

    output: str = ""
    """Folder or URL of the results. Empty: `evaluation-<fingerprint>` beside the first localiser; the fingerprint is of
    all nets' weights in their order, the data, protocols, scales, by_position and compute.precision."""

    @model_validator(mode="after")
    def _possible(self) -> "LocaliserEvaluation":
        if len({*self.localiser}) < len(self.localiser):
            raise ValueError("localiser: one is named twice; an ensemble counts each net once")
        dense = "dense" in self.protocols
        check_shown(self.backbone, ("multi-scale",) if dense else ("1-crop",), self.scales, self.compute, self.scaling)
        return self
