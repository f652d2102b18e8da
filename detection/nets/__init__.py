"""Faster R-CNN, Mask R-CNN and RetinaNet on any net that meets the backbone contract, of torchvision's parts.

`build` makes a `Detector`, which is an `Rcnn` or a `Retina`; `summary` says in one line what of it trains. Inside:
contract.py says what a detector is, detector.py and retinanet.py put the parts together, policy.py fixes and exchanges
the backbone's norms, regions.py has what torchvision lacks for kind c4.

Every weight of the backbone stays under `backbone.body.` with its own key, in every kind, C5 and fc6/fc7 of kind c4
included. Kinds fpn and retinanet have torchvision's keys throughout, so its weights load.
"""

from detection.nets.contract import Detector
from detection.nets.detector import Rcnn, build, summary
from detection.nets.retinanet import Retina

__all__ = ["Detector", "Rcnn", "Retina", "build", "summary"]
