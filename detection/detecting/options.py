"""What `jobs/detect.py` is told. Imports nothing slow."""

from pydantic import Field, model_validator

from backbone.options import Strict


class Detecting(Strict):
    """Detect in a folder of images, or in a list of them. Run it again to go on after a stop."""

    detector: str
    """Detector artifact: a folder or URL. It is verified."""

    images: str
    """A folder or URL of images, looked through to its last folder; a COCO list (`.json` with `images`); or a list of
    Pascal VOC as `folder:split`, joined by commas: VOC2007:test. Annotations are not read."""

    image_folder: str = ""
    """With a COCO list: folder or URL of its images."""

    output: str
    """Folder or URL of the results, which every node must see. One detector and one set of images a folder."""

    num_workers: int = Field(0, ge=0)
    """Parts detected at a time, each a Ray task, as far as the cluster has room. 0: one by one in this process, without
    Ray."""

    cpus_per_worker: int = Field(1, ge=1)
    """Cores reserved for a worker, and the threads torch computes with in it."""

    use_gpu: bool = False
    """A GPU for each worker."""

    images_per_part: int = Field(32, ge=1)
    """Images of a part, which is the unit of work and of resuming. Changes nothing in the results."""

    pictures: int = Field(24, ge=0)
    """Images shown in report.html."""

    min_score: float = Field(0.3, ge=0, le=1)
    """Detections shown and counted in report.html score at least this; the other files have all."""

    @model_validator(mode="after")
    def _possible(self) -> "Detecting":
        for field in ("detector", "images", "output"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty")
        is_list = self.images.endswith(".json")
        if is_list and not self.image_folder:
            raise ValueError(f"images {self.images} is a list; name the folder of its images: --image_folder FOLDER")
        if self.image_folder and not is_list:
            raise ValueError("image_folder is read with a COCO list (.json) as images only")
        return self
