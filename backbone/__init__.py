"""Residual backbones: build, pretrain on a Ray cluster, judge, hand on.

net, inputs, about = backbone.load("runs/my-run/artifact")
maps = net(inputs.normalize(images))  # images uint8 RGB [N, 3, H, W] -> {"C2": ..., "C5": ...}
run = backbone.pretrain("quickstart/residual.yaml", name="mine")  # as jobs/pretrain.py
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbone.api import pretrain as pretrain
    from backbone.artifact import load as load

__all__ = ["load", "pretrain"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; --help and error messages do without it.
    if name == "load":
        from backbone.artifact import load

        return load
    if name == "pretrain":
        from backbone.api import pretrain

        return pretrain
    raise AttributeError(f"module 'backbone' has no attribute {name!r}")
