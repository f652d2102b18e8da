"""Which trial is called the best: only one whose interval excludes the second."""

from pathlib import Path

import pytest
from scipy.stats import binomtest

from backbone import intervals
from backbone.sweep import standing
from backbone.sweep.record import Objective, Record
from backbone.sweep.view import summary
from tests.backbone.sweep.conftest import make_record

ERROR = Objective("val_error", "min", "validation error (%)")


@pytest.mark.parametrize(("wrong", "n"), [(0, 50), (3, 50), (250, 1000), (999, 1000), (50, 50)])
def test_the_interval_is_wilsons(wrong: int, n: int) -> None:
    expected = binomtest(wrong, n).proportion_ci(0.95, "wilson")
    assert intervals.wilson(100 * wrong / n, n) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-5)


def of(errors: dict[str, float], images: float | None) -> Record:
    """The sample sweep with these errors of its finished trials, seen on so many images."""
    record = make_record(Path("nowhere"))
    record.trials = [t for t in record.trials if t.state != "finished" or t.id in errors]
    for trial in record.of_state("finished"):
        trial.values["val_error"] = errors[trial.id]
        for row in trial.history:
            row.pop("val_images") if images is None else row.update(val_images=images)
    record.best = min(errors, key=errors.__getitem__)
    record.state = "finished"
    return record


def test_best_is_named_where_the_second_is_excluded() -> None:
    """10 and 13 % of 10,000 images differ by 3 points; each interval is 0.6 wide on either side."""
    record = of({"0001": 10.0, "0002": 13.0, "0008": 20.0}, 10_000)
    assert standing.has_best(record)
    assert [standing.word(record, t) for t in record.of_state("finished")] == ["the best", "", ""]
    assert summary.headline(record) == (
        "Best: cifar resnet20 with 10.00\u00a0% [9.43–10.60] validation error, trial 0001."
    )
    assert "Train the best" in summary.commands(record)


def test_otherwise_it_is_said_to_be_level() -> None:
    """The same on 200 images: the second may be better, the third is not."""
    record = of({"0001": 10.0, "0002": 13.0, "0008": 25.0}, 200)
    assert [t.id for t in standing.level(record)] == ["0002"]
    words = {t.id: standing.word(record, t) for t in record.trials}
    assert {i for i, said in words.items() if said} == {"0001", "0002"}
    assert words["0001"] == words["0002"] == "level at the top"
    assert summary.headline(record) == (
        "No trial is the best. Lowest: cifar resnet20 with 10.00\u00a0% [6.57–14.94] validation error, trial 0001, "
        "level with 0002."
    )
    assert "another seed" in summary.caveat(record)
    assert list(summary.commands(record)) == ["All trials in TensorBoard", "Train trial 0001"]
    head, lines = summary.table(record)
    marks = {str(line[0].key): line[0].text for line in lines}
    assert (marks["0001"], marks["0002"], marks["0008"]) == ("0001 ≈", "0002 ≈", "0008")
    assert lines[0][head.index(summary.INTERVAL)].text == "[6.57–14.94]"


def test_unknown_intervals_name_nobody() -> None:
    record = of({"0001": 1.0, "0002": 99.0}, None)
    assert not standing.has_best(record)
    assert summary.headline(record).startswith("No trial is the best. Lowest: cifar resnet20 with 1.00\u00a0% val")
    assert "not known" in summary.caveat(record)


def test_one_finished_trial_is_the_best_of_nothing() -> None:
    record = of({"0002": 10.0}, 1000)
    assert standing.word(record, record.trial("0002")) == "the only one finished"
    assert summary.headline(record).startswith("One trial has finished: cifar resnet56 with 10.00")


@pytest.mark.parametrize(
    ("right", "low"),  # of Newcombe (1998), Table II, method 10: (a) 56/70 - 48/80, (b) 9/10 - 3/10, (h) 10/10 - 0/10
    [((56, 70, 48, 80), 0.0524), ((9, 10, 3, 10), 0.1705), ((10, 10, 0, 10), 0.6075)],
)
def test_a_difference_is_newcombes(right: tuple[int, int, int, int], low: float) -> None:
    hits, n, other, m = right
    better, worse = intervals.wilson(100 * hits / n, n), intervals.wilson(100 * other / m, m)
    assert standing.least_gap(100 * other / m, worse, 100 * hits / n, better) / 100 == pytest.approx(low, abs=5e-5)


def test_higher_is_better_where_it_is_and_counts_are_exact() -> None:
    record = of({"0001": 10.0, "0002": 20.0}, 100)
    one, other = record.of_state("finished")
    one.values |= {"AP": 0.30, "AP_low": 0.28, "AP_high": 0.33}
    other.values |= {"AP": 0.25, "AP_low": 0.22, "AP_high": 0.27}
    ap = Objective("AP", "max", "detection AP")
    # The gap of 0.05 against the distances to the facing ends, 0.02 and 0.02.
    assert standing.is_better(one, other, ap) is True
    assert standing.is_better(other, one, ap) is False
    one.values["AP_low"] = 0.25
    assert standing.is_better(one, other, ap) is False  # 0.05 and 0.02 are 0.054 together
    assert standing.is_better(one, other, Objective("macs", "min", "")) is True
    assert standing.is_better(one, other, Objective("latency_ms", "min", "")) is None
