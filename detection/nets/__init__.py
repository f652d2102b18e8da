"""Faster R-CNN, Mask R-CNN, RetinaNet and a semantic head on any net that meets the backbone contract.

`build` makes a `Detector`, which is an `Rcnn`, a `Retina` or a `Semantic`, of torchvision's parts; `summary` says in
one line what of it trains. Inside: contract.py says what a detector is, detector.py, retinanet.py and semantic.py put
the parts together, policy.py fixes and exchanges the backbone's norms, regions.py has what torchvision lacks for kind
c4.

Every weight of the backbone stays under `backbone.body.` with its own key, in every kind, C5 and fc6/fc7 of kind c4
included. Kinds fpn and retinanet have torchvision's keys throughout, so its weights load.
"""

from detection.nets.contract import BoxDetector, Detector
from detection.nets.detector import Rcnn, build, summary
from detection.nets.retinanet import Retina
from detection.nets.semantic import Semantic

__all__ = ["BoxDetector", "Detector", "Rcnn", "Retina", "Semantic", "build", "summary"]
