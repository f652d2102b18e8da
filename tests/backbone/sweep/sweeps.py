"""Small sweeps over the tests' tiny recipe."""

from pathlib import Path
from typing import Any

import yaml

from backbone.cli import validate
from backbone.sweep.options import Sweep
from tests.conftest import TINY

SPACE = {"model.depth": {"choice": [8, 14]}, "optim.lr": {"loguniform": [0.01, 0.3]}}
ON_RAY = {"scaling": {"num_workers": 1}}


def make(folder: Path, space: dict[str, Any] = SPACE, **more: Any) -> Sweep:
    """A sweep called s over 160 rendered images, stored in `folder`."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    fields = {"name": "s", "base": str(folder / "tiny.yaml"), "base_with": ON_RAY, "storage": str(folder), **more}
    return validate(Sweep, {**fields, "space": space}, "sweep.yaml")
