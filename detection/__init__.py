"""Detectors on any backbone: fine-tune on a Ray cluster, judge, and say what the backbone is worth.

detector = detection.load("runs/my-detector/artifact")
detection.detect(detector, photos)  # uint8 RGB arrays [H, W, 3] -> [{"boxes": ..., "labels": ..., "scores": ...}]
detection.segment(detector, photos)  # of kind semantic -> the class of every pixel, uint8 [H, W]
run = detection.finetune("quickstart/detector.yaml", backbone="runs/mine/artifact")  # as jobs/finetune.py
told = detection.gains("quickstart/gains.yaml")  # as jobs/gains.py
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.artifact import load as load
    from detection.evaluate import detect as detect
    from detection.semantic import segment as segment

__all__ = ["detect", "load", "segment"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; --help and error messages do without it.
    if name == "load":
        from detection.artifact import load

        return load
    if name == "detect":
        from detection.evaluate import detect

        return detect
    if name == "segment":
        from detection.semantic import segment

        return segment
    if name in ("finetune", "gains"):  # modules that may be called, see detection.called
        return importlib.import_module(f"detection.{name}")
    raise AttributeError(f"module 'detection' has no attribute {name!r}")
