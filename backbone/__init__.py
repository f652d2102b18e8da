"""Residual backbones: build, pretrain on a Ray cluster, judge, hand on.

net, inputs, about = backbone.load("runs/my-run/artifact")
maps = net(inputs.normalize(images))  # images uint8 RGB [N, 3, H, W] -> {"C2": ..., "C5": ...}
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbone.artifact import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; --help and error messages do without it.
    if name == "load":
        from backbone.artifact import load

        return load
    raise AttributeError(f"module 'backbone' has no attribute {name!r}")
