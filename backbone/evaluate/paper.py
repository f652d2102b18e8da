"""The paper's classification results, beside which ours stand in columns of their own
(arXiv:1512.03385, Tables 2 to 6).

Errors in percent. Nothing here is ours.
"""

from dataclasses import dataclass
from typing import Any

IMAGENET, IMAGENET_TEST, CIFAR = "ImageNet val", "ImageNet test", "CIFAR-10 test"
CLASSES = {IMAGENET: 1000, IMAGENET_TEST: 1000, CIFAR: 10}


@dataclass(frozen=True)
class Published:
    """One row of a table. `net` and `shortcut` are those of `NetOptions`, empty where raybone has no such net."""

    table: int
    name: str
    protocol: str  # as in `BackboneEvaluation.protocols`; "other" where the paper only cites the number
    data: str
    top1: float | None
    top5: float | None = None
    net: str = ""
    shortcut: str = ""
    ensemble: bool = False


def _imagenet(table: int, protocol: str, *rows: tuple[str, str, str, float | None, float | None]) -> list[Published]:
    return [
        Published(table, name, protocol if net else "other", IMAGENET, top1, top5, net, shortcut)
        for name, net, shortcut, top1, top5 in rows
    ]


def _cifar(name: str, error: float, net: str = "") -> Published:
    return Published(6, name, "1-crop" if net else "other", CIFAR, error, None, net, "A" if net else "")


PUBLISHED = (
    *_imagenet(
        2,
        "10-crop",
        ("plain-18", "plain18", "none", 27.94, None),
        ("ResNet-18 A", "resnet18", "A", 27.88, None),
        ("plain-34", "plain34", "none", 28.54, None),
        ("ResNet-34 A", "resnet34", "A", 25.03, None),
    ),
    *_imagenet(
        3,
        "10-crop",
        ("VGG-16", "vgg16", "B", 28.07, 9.33),
        ("GoogLeNet", "", "", None, 9.15),
        ("PReLU-net", "", "", 24.27, 7.38),
        ("plain-34", "plain34", "none", 28.54, 10.02),
        ("ResNet-34 A", "resnet34", "A", 25.03, 7.76),
        ("ResNet-34 B", "resnet34", "B", 24.52, 7.46),
        ("ResNet-34 C", "resnet34", "C", 24.19, 7.40),
        ("ResNet-50", "resnet50", "B", 22.85, 6.71),
        ("ResNet-101", "resnet101", "B", 21.75, 6.05),
        ("ResNet-152", "resnet152", "B", 21.43, 5.71),
    ),
    Published(4, "VGG (ILSVRC'14)", "other", IMAGENET_TEST, None, 8.43),
    *_imagenet(
        4,
        "multi-scale",
        ("GoogLeNet (ILSVRC'14)", "", "", None, 7.89),
        ("VGG (v5)", "", "", 24.4, 7.1),
        ("PReLU-net", "", "", 21.59, 5.71),
        ("BN-inception", "", "", 21.99, 5.81),
        ("ResNet-34 B", "resnet34", "B", 21.84, 5.71),
        ("ResNet-34 C", "resnet34", "C", 21.53, 5.60),
        ("ResNet-50", "resnet50", "B", 20.74, 5.25),
        ("ResNet-101", "resnet101", "B", 19.87, 4.60),
        ("ResNet-152", "resnet152", "B", 19.38, 4.49),
    ),
    Published(5, "VGG (ILSVRC'14)", "other", IMAGENET_TEST, None, 7.32),
    Published(5, "GoogLeNet (ILSVRC'14)", "other", IMAGENET_TEST, None, 6.66),
    Published(5, "VGG (v5)", "other", IMAGENET_TEST, None, 6.8),
    Published(5, "PReLU-net", "other", IMAGENET_TEST, None, 4.94),
    Published(5, "BN-inception", "other", IMAGENET_TEST, None, 4.82),
    Published(5, "ResNet (ILSVRC'15), 6 nets", "multi-scale", IMAGENET_TEST, None, 3.57, ensemble=True),
    _cifar("Maxout", 9.38),
    _cifar("NIN", 8.81),
    _cifar("DSN", 8.22),
    _cifar("FitNet, 19 layers", 8.39),
    _cifar("Highway, 19 layers", 7.54),
    _cifar("Highway, 32 layers", 8.80),
    _cifar("ResNet-20", 8.75, "cifar_resnet20"),
    _cifar("ResNet-32", 7.51, "cifar_resnet32"),
    _cifar("ResNet-44", 7.17, "cifar_resnet44"),
    _cifar("ResNet-56", 6.97, "cifar_resnet56"),
    _cifar("ResNet-110, best of 5", 6.43, "cifar_resnet110"),
    _cifar("ResNet-1202", 7.93, "cifar_resnet1202"),
)
"""Table 6's ResNet-110 is the best of five runs, which are 6.61 +- 0.16. Its nets were tested on "the single view of
the original 32x32 image", which is 1-crop of a net whose crop_pct is 1. Tables 4 and 5 are the multi-scale test of
section 3.4; the ensemble has six models of different depth, two of them of 152 layers."""

COMPARABLE = (
    "Paper: as printed. Ours: net, shortcut, number of classes and protocol are the paper's; training, images and "
    "their preparation are what provenance says, and need not be."
)


def matches(row: Published, result: dict[str, Any]) -> bool:
    """Whether one of ours, an entry of `results.json`'s `results`, is the net and the protocol of a row."""
    if row.protocol != result["protocol"] or CLASSES[row.data] != result["classes"]:
        return False
    if row.ensemble or result["nets"] > 1:
        return row.ensemble and result["nets"] > 1
    return (row.net, row.shortcut) == (result["net"], result["shortcut"])


def beside(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row of the tables in which one of our results has its place, with ours where there is one."""
    rows = []
    for published in PUBLISHED:
        ours = [result for result in results if matches(published, result)]
        for result in ours or [{}]:
            rows.append(
                {
                    "table": published.table,
                    "paper": {
                        "net": published.name,
                        "data": published.data,
                        "protocol": published.protocol,
                        "top1_error": published.top1,
                        "top5_error": published.top5,
                    },
                    "ours": {key: result[key] for key in ("of", "data", "trained", "top1_error", "top5_error")}
                    if result
                    else None,
                }
            )
    filled = {row["table"] for row in rows if row["ours"]}
    return [row for row in rows if row["table"] in filled]


COLUMNS = ("paper: net", "paper: data", "paper: top-1", "paper: top-5", "ours: top-1", "ours: top-5")
COLUMNS += ("ours: net", "ours: data", "ours: trained")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows of `beside` as tables, their columns padded to be read as they are; empty where there are none."""
    lines = []
    for table in sorted({row["table"] for row in rows}):
        cells = [COLUMNS, ("---",) * len(COLUMNS)]
        for row in (row for row in rows if row["table"] == table):
            paper, ours = row["paper"], row["ours"] or {}
            numbers = [paper["top1_error"], paper["top5_error"], ours.get("top1_error"), ours.get("top5_error")]
            what = [ours.get(key, "-") for key in ("of", "data", "trained")]
            cells.append((paper["net"], paper["data"], *("-" if n is None else f"{n:.2f}" for n in numbers), *what))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += [f"Table {table}: error, percent", ""]
        lines += [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in cells]
        lines.append("")
    return "\n".join([*lines, COMPARABLE, ""]) if lines else ""
