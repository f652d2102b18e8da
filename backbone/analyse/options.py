"""What `jobs/analyse.py` is told. Imports nothing slow."""

from pydantic import Field

from backbone.data.options import Data, SyntheticData
from backbone.options import Seed, Strict


class Analysis(Strict):
    """Look into nets: the gradient each unit gets, what scaled shortcuts make of it, layer responses (Fig. 7). The
    command line gives the fields, or a YAML file (--config FILE)."""

    backbone: tuple[str, ...] = ()
    """Trained artifacts: residual, plain or external nets. All must read images of one size."""

    depths: tuple[int, ...] = (20, 56, 110)
    """CIFAR nets, plain and residual (option A), to look at as they are initialised."""

    scales: tuple[float, ...] = (0.5, 0.9, 1.0, 1.1)
    """λ: scaled shortcuts of the deepest of `depths`."""

    size: int = Field(32, ge=16)
    """Side of the images for the nets of `depths`, pixels. With backbones: theirs."""

    data: Data = SyntheticData()
    """Where images come from; only `val` is read, and neither size nor crop_pct."""

    images: int = Field(128, ge=2)
    """How many of them, evenly spread: one batch."""

    seed: Seed = 0
    """Of the initialisations."""

    output: str = "analysis"
    """Folder or URL of the results."""
