"""What `jobs/submit.py` is told. Imports nothing slow."""

from pydantic import Field, model_validator

from backbone.compute import Compute, Scaling
from backbone.evaluate.options import Protocol, check_shown
from backbone.options import Strict


class Submission(Strict):
    """Write the file that ILSVRC's test server takes. The command line gives the fields, or a YAML file (--config
    FILE).

    Classification: five classes an image, of several nets by the mean of their scores. Localisation: a box with each.
    Detection: what jobs/detect.py found, under the challenge's numbers.
    """

    backbone: tuple[str, ...] = ()
    """Backbone artifacts: folders or URLs. They are verified. Several: one entry of their ensemble."""

    localiser: tuple[str, ...] = ()
    """Artifacts of jobs/localise.py, of kind rpn or rcnn: localisation, boxes for the classes that the backbones say.
    Several: one entry of their ensemble."""

    proposals: tuple[str, ...] = ()
    """Artifacts of the localisers whose proposals those of kind rcnn read, where they lie no longer where their recipes
    say."""

    detections: str = ""
    """Folder of jobs/detect.py, in place of backbones: detection."""

    images: str = Field(min_length=1)
    """What is submitted: a list in ILSVRC's layout as folder:list, such as /data/ILSVRC:test; for classification and
    localisation also a folder of images, which are taken in the order of their names."""

    synsets: str = Field(min_length=1)
    """The challenge's numbers of classes: the devkit's data/map_clsloc.txt (map_det.txt for detection) with lines
    `n02119789 1 kit_fox`, or WordNet ids alone, a line each, in the challenge's order."""

    output: str = Field(min_length=1)
    """Folder or URL: predictions.txt is the file, submission.json says of what it is."""

    by_position: bool = False
    """The nets' class k is the k-th of the WordNet ids, sorted, whatever it is called: the usual order of 1000."""

    protocol: Protocol = "multi-scale"
    """How images are shown to the backbones, as in jobs/evaluate.py; a localiser sees 1-crop or multi-scale."""

    scales: tuple[int, ...] = Field((224, 256, 384, 480, 640), min_length=1)
    """multi-scale: shorter sides for a net of 224 px. For a net of another size they are in proportion."""

    batch: int = Field(32, ge=1)
    """Images read at once by each worker; through the net go as many pixels at a time as so many of its own size."""

    loaders: int = Field(4, ge=0)
    """Loader processes of each worker. 0: load in the worker."""

    compute: Compute = Compute(precision="fp32")
    scaling: Scaling = Scaling(num_workers=0)

    @model_validator(mode="after")
    def _possible(self) -> "Submission":
        if bool(self.backbone) == bool(self.detections):
            given = "both are given" if self.backbone else "none is given"
            raise ValueError(
                f"backbone, detections: give one of them, {given}: --backbone FOLDER ... for classification and "
                "localisation, --detections FOLDER of jobs/detect.py for detection"
            )
        if self.proposals and not self.localiser:
            raise ValueError("proposals: are read with localiser only; leave them out")
        if len({*self.localiser}) < len(self.localiser):
            raise ValueError("localiser: one is named twice; an ensemble counts each net once")
        if self.localiser and not self.backbone:
            raise ValueError("localiser: says where, not what; give --backbone FOLDER ... too")
        unread = ("by_position", "protocol", "scales", "batch", "loaders", "compute", "scaling")
        given = [name for name in unread if getattr(self, name) != type(self).model_fields[name].default]
        if self.detections and given:
            raise ValueError(
                f"{', '.join(given)}: read with backbone only; what jobs/detect.py found is written as it is, leave "
                "them out"
            )
        if self.localiser and self.protocol == "10-crop":
            raise ValueError("protocol 10-crop: a localiser sees 1-crop or multi-scale")
        check_shown(self.backbone, (self.protocol,), self.scales, self.compute, self.scaling)
        return self
