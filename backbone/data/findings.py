"""What is wrong with a data set, counted and with examples, and what it consists of; as text and as JSON."""

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backbone.errors import UserError, printable

Severity = Literal["error", "warning", "note"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 5
BY_CLASS = " by class"  # statistics whose names end so are printed as tables
WIDTH = 110  # characters of a line


@dataclass
class Finding:
    """One kind of fault."""

    # error: training or scoring would fail or be wrong. warning: mended in reading. note: good to know.
    severity: Severity
    what: str
    remedy: str  # what raybone does, or what to do
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def as_line(self) -> str:
        """For a log."""
        more = ", ..." if self.count > len(self.examples) else ""
        examples = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.count} {self.what}{examples}: {self.remedy}"


class Findings:
    """Faults as they are met."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}

    def add(self, severity: Severity, what: str, remedy: str, example: object = None, count: int = 1) -> None:
        """Count one more of `what`, or `count` more; the first few examples are kept."""
        finding = self._found.setdefault(what, Finding(severity, what, remedy))
        finding.count += count
        if example is not None and len(finding.examples) < EXAMPLES:
            finding.examples.append(printable(str(example)))

    def join(self, others: "Findings | Sequence[Finding]") -> "Findings":
        """Take in those of others, who may have met the same."""
        for one in others.sorted() if isinstance(others, Findings) else others:
            finding = self._found.setdefault(one.what, Finding(one.severity, one.what, one.remedy))
            finding.count += one.count
            finding.examples = (finding.examples + one.examples)[:EXAMPLES]
        return self

    def sorted(self) -> list[Finding]:
        """Errors first."""
        return sorted(self._found.values(), key=lambda finding: ORDER.index(finding.severity))

    @property
    def errors(self) -> bool:
        return any(finding.severity == "error" for finding in self._found.values())


def to_json(findings: Sequence[Finding]) -> bytes:
    """For `from_json`."""
    return json.dumps([asdict(one) for one in findings]).encode()


def from_json(data: bytes) -> list[Finding]:
    """What `to_json` wrote."""
    return [Finding(**one) for one in json.loads(data)]


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says."""

    subject: dict[str, str]  # what was examined: source and locations
    findings: list[Finding]
    statistics: dict[str, Any]

    @property
    def errors(self) -> int:
        """How many kinds of fault are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def num_images(self) -> int:
        """Of the split, or of the first of two."""
        return self.statistics.get("images", self.statistics.get("train images", 0))

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "errors": self.errors,
            **self.subject,
            "findings": [asdict(finding) for finding in self.findings],
            "statistics": self.statistics,
        }

    def write(self, path: str) -> None:
        """As JSON to a file; UserError where it cannot be written."""
        try:
            Path(path).expanduser().write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"json_file {path}: {error.strerror}") from error

    def as_text(self) -> str:
        """All of it, for people."""
        lines = ["  ".join(filter(None, self.subject.values())), ""]
        for finding in self.findings:
            lines.append(f"{finding.severity:<8}{finding.count:>8}  {finding.what}")
            if finding.examples:
                more = ", ..." if finding.count > len(finding.examples) else ""
                lines += _indented("at: " + ", ".join(finding.examples) + more)
            lines += _indented(finding.remedy)
        counts = Counter(finding.severity for finding in self.findings)
        verdict = ", ".join(f"{counts[one]} {one}{'s' * (counts[one] != 1)}" for one in ORDER)
        lines += ["", verdict, "", *_table(self.statistics)]
        return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * 18, subsequent_indent=" " * 18, break_on_hyphens=False)


def _table(statistics: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in statistics.items():
        if not isinstance(value, dict):
            lines.append(f"{name:<22}{value:>8}")
        elif not name.endswith(BY_CLASS):
            lines.append(f"{name:<22}" + "   ".join(f"{key} {number}" for key, number in value.items()))
        else:
            width = max([20, *map(len, value)])
            lines += [name, *(f"  {key:<{width}}{number:>8}" for key, number in value.items())]
    return lines


def image_sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, dict[str, float]]:
    """Statistics of images' (height, width), in pixels; none where there are no images."""
    if not sizes:
        return {}
    height, width = np.array(sizes, np.float64).T
    five = {"smallest": 0, "5 %": 5, "median": 50, "95 %": 95, "largest": 100}
    return {
        f"image {name}": {key: round(float(np.percentile(values, at)), digits or None) for key, at in five.items()}
        for name, values, digits in (("width", width, 0), ("height", height, 0), ("aspect", width / height, 2))
    }
