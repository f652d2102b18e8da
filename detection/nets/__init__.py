"""Faster R-CNN and Mask R-CNN on any net that meets the backbone contract, of torchvision's detection parts.

`build` makes a `Detector`; `summary` says in one line what of it trains. Inside: detector.py puts the parts together,
policy.py fixes and exchanges the backbone's norms, regions.py has what torchvision lacks for kind c4.

Every weight of the backbone stays under `backbone.body.` with its own key, in both kinds, C5 and fc6/fc7 of kind c4
included. Kind fpn has torchvision's keys throughout, so its Faster and Mask R-CNN weights load.
"""

from detection.nets.detector import Detector, build, summary

__all__ = ["Detector", "build", "summary"]
