"""The paper's localisation results (arXiv:1512.03385, Table 13, ImageNet val, 1000 classes). Nothing here is ours."""

TABLE_13: dict[str, dict[str, float]] = {
    "1-crop": {"VGG-16, own class": 33.1, "RPN, ResNet-101, own class": 13.3},
    "dense": {
        "RPN, ResNet-101, own class": 11.7,
        "RPN, ResNet-101, top-5": 14.4,
        "RPN and R-CNN, ResNet-101, top-5": 10.6,
        "RPN and R-CNN, ensemble, top-5": 8.9,
    },
}
"""Localisation errors, percent, by how they were tested."""


def beside(protocol: str) -> dict[str, float]:
    """What stands beside ours of this protocol."""
    return TABLE_13.get(protocol, {})
