"""A report of make-believe detectors, what of the paper may stand in it, and a reader of its page."""

from html.parser import HTMLParser
from pathlib import Path

from detection.report.summary import GainsReport, Regime, Row, Training
from tests.detection.report import simulated

NAMES = ["cat", "<b>dog</b>", "bus"]
EVIL = "ResNet-18 <script>alert(1)</script> | & more"
PAPERS = {
    "AP": r"21\.2[ |]+27\.2",
    "AP50": r"41\.5[ |]+48\.4",
    "mAP07": r"73\.2[ |]+76\.4",
    "mAP": r"70\.4[ |]+73\.8",
}
VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps tags, and text by the innermost tags around it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.table = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "table" in self.open:
            self.table += f" {data}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def made(folder: Path, images: int = 50, masks: bool = False) -> GainsReport:
    truth = simulated.ground_truth(images, NAMES, masks=masks)

    def regime(label: str) -> Regime:
        if label == "from scratch":
            return Regime("group", 0, 4500, 2, {"schedule.milestones": [3500]})
        return Regime("frozen", 2, 1500, 2, {})

    def row(label: str, pretrained: str | None, skill: float, pretrainings: list[int | None], macs: float) -> Row:
        results = []
        for seed, pretraining in enumerate(pretrainings):
            place = folder / f"{skill}-{seed}"
            found = simulated.detections(truth, skill, int(1000 * skill) + seed, masks)
            simulated.write_results(place, truth, found)
            results.append(Training.read(str(place), seed, pretraining))
        pretrain = {"top-1": 0.871} if pretrained else {}
        return Row(label, "resnet18", pretrained, 28_400_000, macs, 340.0, pretrain, tuple(results), regime(label))

    return GainsReport(
        title="Gains <on> scenes",
        baseline="plain-18",
        rows=(
            row(EVIL, "imagenette128", 0.8, [4, 4, 5, 5, 6, 6], 9.6e9),
            row("plain-18", "imagenette128", 0.4, [4, 4, 4], 9.4e9),
            row("from scratch", None, 0.38, [None], 9.6e9),
        ),
        recipe={"detector": {"kind": "fpn", "freeze_at": 2}},
        data={"source": "synthetic", "images": 50, "fingerprint": "9f2c"},
        environment={"hardware": "2 cores", "torch": "2.15", "git": "5f3758a"},
        command="python jobs/gains.py --config a.yaml --name '<x>'",
    )
