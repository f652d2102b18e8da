"""How the report says its numbers: the same in Markdown, HTML and charts."""

from collections.abc import Callable
from typing import Any

from detection.report.intervals import MOST_TRAININGS
from detection.report.measures import METRICS

NONE = "–"
SIZES = ("APs", "APm", "APl")
REGIME = ("Norms", "Parts fixed", "Steps", "Images a micro-batch", "Recipe otherwise")


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent without the sign: 0.312 -> 31.2."""
    return NONE if value is None else f"{100 * value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """As `percent`, with + or −; what rounds to nothing has no sign."""
    if value is None:
        return NONE
    text = f"{100 * value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def interval(told: dict[str, Any], say: Callable[[float | None], str] = percent) -> str:
    """An estimate with its interval: `31.2 (28.9–33.4)`, signed `+4.1 (+2.0 to +6.3)`.

    Round brackets hold both noises; square ones, where the row was trained once, other images alone.
    """
    span, (opening, closing) = (told["joint"], "()") if told["joint"] else (told["images"], "[]")
    if told["value"] is None or span is None:
        return say(told["value"])
    between = "–" if say is percent else " to "
    return f"{say(told['value'])} {opening}{say(span['low'])}{between}{say(span['high'])}{closing}"


def agreed(told: dict[str, Any]) -> str:
    """Kendall's tau, brackets as in `interval`: `0.87 (0.47 to 1.00)`."""
    return interval(told, lambda v: NONE if v is None else f"{v:.2f}".replace("-", "−"))


def relative(told: dict[str, Any] | None) -> str:
    """A relative gain, brackets as in `interval`: `+28\u00a0% (+12\u00a0% to +44\u00a0%)`."""
    if told is None:
        return NONE
    span = {"low": told["low"], "high": told["high"]}
    both = {"value": told["value"], "joint": span if told["joint"] else None, "images": span}
    return interval(both, lambda v: f"{signed(v, 0)}\u00a0%")


def between(told: dict[str, Any], of: str) -> str:
    """The ends of one of a gain's intervals: `+2.0 to +6.3`."""
    span = told[of]
    return f"{signed(span['low'])} to {signed(span['high'])}" if span else "unknown"


def trained(row: dict[str, Any]) -> str:
    """How often a row was trained: `3 pretrainings, 6 fine-tunings`."""
    count = len(row["trainings"])
    if row["pretrained"] is None:
        return f"{count} from scratch"
    of = "pretraining" if row["pretrainings"] == 1 else "pretrainings"
    return f"{row['pretrainings']} {of}, {count} fine-tuning{'s' if count > 1 else ''}"


def regime(told: dict[str, Any]) -> list[str]:
    """How a row was trained, a cell for each of `REGIME`."""
    otherwise = ", ".join(f"{field} {value}" for field, value in told["otherwise"].items())
    return [told["norms"], str(told["fixed_parts"]), f"{told['steps']:,}", str(told["micro_batch"]), otherwise or NONE]


def training(one: dict[str, Any]) -> str:
    """The name of a training within its row."""
    here = "" if one["pretrain_seed"] is None else f"pretraining seed {one['pretrain_seed']}, "
    return f"{here}seed {one['seed']}"


def needed(gain: dict[str, Any], half_width: float) -> str:
    """How many trainings a row the wanted half-width takes, a fraction."""
    if gain["needed"]:
        return f"{gain['needed']} trainings a row"
    if gain["images_alone"] is None:
        return "unknown: train each row twice at least, and judge on two images at least"
    if gain["images_alone"] <= half_width:
        return f"more than {MOST_TRAININGS} trainings a row"
    return f"more images: any number of trainings leaves ±{percent(gain['images_alone'])}"


def covers(rows: list[dict[str, Any]]) -> list[str]:
    """What the report's intervals hold, and what not."""
    once = [row["label"] for row in rows if row["independent"] == 1]
    fixed = [row["label"] for row in rows if row["independent"] > 1 and row["pretrainings"] == 1]
    lines = []
    if len(once) < len(rows):
        lines.append("95 % intervals, in round brackets: other images and other trainings, both.")
    if once:
        lines.append(
            f"In square brackets: other images alone, of these very detectors. {_all(once)} trained once; what another "
            "training would change is unknown, so that no row is said to be better than another by it."
        )
    if fixed:
        lines.append(f"What another pretraining of {_all(fixed, '')} would change is unknown, and in no interval.")
    return lines


def missing(summary: dict[str, Any]) -> list[str]:
    """A sentence for each training that is not in the report."""
    return [f"{one['run']} is missing: {one['why']}" for one in summary["missing"]]


def _all(labels: list[str], verb: str = "was") -> str:
    """`a was`, `a and b were`."""
    *others, last = labels
    listed = f"{', '.join(others)} and {last}" if others else last
    return f"{listed} {'were' if others else 'was'}" if verb else listed


def quantity(value: float) -> str:
    """A count in three digits: 11.7 M, 1.81 G."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def minutes(seconds: float) -> str:
    """A duration for people: 42 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def title(metric: str) -> str:
    """What a metric is called: AP, VOC mAP."""
    return METRICS[metric].title


def described(metric: str) -> str:
    """With what it is: `VOC mAP at IoU 0.5, 11 points (VOC 2007)`."""
    return f"{METRICS[metric].title} {METRICS[metric].said}".rstrip()


def headlines(summary: dict[str, Any], part: int = 0) -> list[str]:
    """A sentence a row, the best first, each made of numbers; the baseline last, and in the first part alone."""
    base, main = summary["baseline"], summary["parts"][part]["main"]
    rows = sorted(summary["rows"], key=lambda row: (row["label"] == base, -(row[main]["value"] or 0)))
    lines = []
    for row in rows:
        line = f"{row['label']}: {title(main)} {interval(row[main])}"
        gain = row["gain"].get(main)
        if not gain:
            lines += [] if part else [f"{line}, the baseline."]
            continue
        line += f", {interval(gain['absolute'], signed)} over {base}"
        if gain["relative"]:
            line += f", relative {signed(gain['relative']['value'], 0)}\u00a0%"
        against = next(r for r in rows if r["label"] == base)
        lines.append(f"{line}{_length(row, against)}; {_verdict(gain, row, against)}.")
    return lines


def why(summary: dict[str, Any], part: dict[str, Any]) -> list[str]:
    """A sentence a row: to which kinds of errors it loses less or more than the baseline, both noises considered."""
    base, lines = summary["baseline"], []
    for row in summary["rows"]:
        found = {kind: one["difference"] for kind, one in row[part["name"]]["errors"].items() if one["difference"]}
        known = {kind: one for kind, one in found.items() if one["joint"]}
        if not known:
            continue
        less = [f"{kind}, {interval(one, signed)}" for kind, one in known.items() if one["joint"]["high"] < 0]
        more = [f"{kind}, {interval(one, signed)}" for kind, one in known.items() if one["joint"]["low"] > 0]
        told = [f"{how} AP50 to {'; '.join(kinds)}" for how, kinds in (("less", less), ("more", more)) if kinds]
        lost = f"loses {'; '.join(told)}" if told else "no difference shown"
        lines.append(f"{row['label']} against {base}: {lost}.")
    return lines


ERRORS = (
    "Points of AP50 that mending all errors of one kind, and nothing else, would win (TIDE, arXiv:2008.08115). They do "
    "not add up. Classification: on an object of another class; localisation: IoU 0.1 to 0.5; both: badly placed and "
    "of another class; duplicate: the object is found already; background: nothing is there; missed: nothing found it. "
    "A class of which nothing is found stays at 0, whatever is mended of what it misses. Of 95 % intervals one in "
    "twenty is off by chance."
)


def _length(row: dict[str, Any], base: dict[str, Any]) -> str:
    """A gain that took longer is not the backbone's alone."""
    times = row["regime"]["steps"] / base["regime"]["steps"]
    if abs(times - 1) < 0.005:
        return ""
    said = f"{_ratio(times)} times" if times > 1 else f"1/{_ratio(1 / times)} of"
    return f", with {said} its steps of fine-tuning"


def _ratio(times: float) -> str:
    return f"{times:.3g}" if times < 100 else f"{times:,.0f}"


def _verdict(gain: dict[str, Any], row: dict[str, Any], base: dict[str, Any]) -> str:
    """Only the interval that holds both noises says whether there is a difference."""
    if gain["verdict"] is None:
        once = [one["label"] for one in (row, base) if one["independent"] == 1]
        if not once:
            return "no interval, for want of images or objects"
        which = "one training each" if len(once) == 2 else f"{once[0]} was trained once"
        return f"{which}: what another training would change is unknown"
    fixed = [one["label"] for one in (row, base) if one["pretrainings"] == 1]
    of = f" between these very backbones of {_all(fixed, '')}" if fixed else ""
    if gain["verdict"] == "no difference":
        return f"no difference shown{of}, zero is inside the interval"
    return f"a difference{of}, zero is outside the interval"
