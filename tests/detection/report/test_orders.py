"""Kendall's tau against scipy's, and its interval against closed cases and simulations whose truth is known."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from detection.report import orders, several
from detection.report.orders import Judged, agreement, tau


def judged(rows: dict[str, list[float]], images: np.ndarray | None = None, name: str = "val") -> Judged:
    """Rows of independent trainings; `images` [R, B] is what each draw of images adds to all trainings of a row."""
    draws = np.zeros((len(rows), 50)) if images is None else images
    made = {
        label: np.array(values)[:, None] + np.concatenate([[0], drawn])
        for (label, values), drawn in zip(rows.items(), draws, strict=True)
    }
    return Judged(made, dict.fromkeys(rows, ()), name, 200)


def test_tau_is_scipys_ties_and_all() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 4, (2, 300, 6)).astype(float)
    expected = [stats.kendalltau(a, b).statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(tau(one, other), expected, atol=1e-12)
    assert np.isnan(tau(np.zeros(4), np.arange(4.0)))


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0)])
def test_without_noise_there_is_no_doubt(sign: int, expected: float) -> None:
    rows = {"a": [0.1, 0.1], "b": [0.2, 0.2], "c": [0.4, 0.4]}
    found = agreement(judged(rows), judged({label: [sign * v for v in values] for label, values in rows.items()}))
    assert (found.rows, found.why) == (["a", "b", "c"], "")
    for interval in (found.joint, found.images):
        assert interval
        assert (found.value, interval.low, interval.high) == pytest.approx((expected,) * 3)


def test_two_rows_change_places_as_often_as_students_t_says() -> None:
    """The closed case: of two rows with two trainings each in one way, and none to doubt in the other, the difference
    of means is drawn as a sum of two independent t of one degree, each a Cauchy; so is their sum."""
    values = {"a": [0.0, 2.0], "b": [2.0, 6.0]}
    first, second = (judged(rows) for rows in (values, {"a": [0.0, 0.0], "b": [1.0, 1.0]}))
    rng = np.random.default_rng(1)
    drawn = orders._trainings((first, second), ["a", "b"], rng)[0] + np.array([1.0, 4.0])
    # Scales are S / √n, 1 and 2; b lies 3 above a.
    assert (drawn[:, 1] < drawn[:, 0]).mean() == pytest.approx(stats.cauchy.sf(3 / (1 + 2)), abs=0.01)
    found = agreement(first, second)
    assert (found.value, found.joint) == (1.0, orders.Interval(-1.0, 1.0))
    assert found.images == orders.Interval(1.0, 1.0)


def test_a_pretraining_that_both_ways_judge_is_drawn_once() -> None:
    """It makes a row better or worse in both, so that their order is the same in every draw; drawn apart it is not."""
    rows = {"a": [0.0, 1.0, 2.0], "b": [0.5, 1.5, 2.6]}
    once = judged(rows)
    paired = Judged(once.rows, {"a": (0, 1, 2), "b": (0, 1, 2)}, "val", 200)
    one, other = (drawn[:, 1] - drawn[:, 0] for drawn in orders._trainings((paired, paired), ["a", "b"], RNG()))
    np.testing.assert_array_equal(one, other)
    one, other = (drawn[:, 1] - drawn[:, 0] for drawn in orders._trainings((once, once), ["a", "b"], RNG()))
    assert abs(np.corrcoef(np.sign(one), np.sign(other))[0, 1]) < 0.05
    assert (found := agreement(paired, paired).joint)
    assert found.low == 1.0
    assert (found := agreement(once, once).joint)
    assert found.low == -1.0


def RNG() -> np.random.Generator:
    return np.random.default_rng(3)


def test_images_are_drawn_together_where_they_are_the_same() -> None:
    """What hard images take from a row they take in both ways: the order is the same in every draw. On images of their
    own, each way has its own."""
    noise = np.random.default_rng(0).normal(size=(2, 400))
    rows = {"a": [0.0, 0.0], "b": [0.2, 0.2]}
    same = agreement(judged(rows, noise), judged(rows, noise))
    apart = agreement(judged(rows, noise), judged(rows, noise, "test"))
    assert same.joint
    assert apart.joint
    assert same.joint.low == 1.0
    assert apart.joint.low == -1.0


def test_what_cannot_be_said_is_not_said() -> None:
    rows = {"a": [0.1, 0.2], "b": [0.3, 0.2], "c": [0.5]}
    found = agreement(judged(rows), judged(rows))
    assert (found.value, found.joint) == (1.0, None)
    assert found.images
    assert found.why == "what another training would change is unknown: trained once, c"
    found = agreement(judged({"a": [0.1, 0.2], "d": [0.1]}), judged(rows))
    assert (found.rows, found.value) == (["a"], None)
    assert found.why == "an order takes two rows, and a alone is in both"
    assert agreement(judged({}), judged(rows)).why == "an order takes two rows, and no row is in both"
    flat = agreement(judged({"a": [0.0, 0.0], "b": [0.0, 0.0]}), judged(rows))
    assert (flat.value, flat.why) == (None, "all rows are worth the same, which is no order")


@pytest.mark.parametrize("truth", ["same", "alike"])
def test_the_interval_holds_the_truth(truth: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast version of benchmarks/order_coverage.py: six rows of three trainings, images and trainings drawn anew."""
    monkeypatch.setattr(orders, "DRAWS", 1000)
    rng, inside = np.random.default_rng(0), []
    for _ in range(150):
        worth = rng.normal(size=6)
        other = worth if truth == "same" else 0.8 * worth + 0.6 * rng.normal(size=6)
        ways = []
        for way in (worth, other):
            seen = way + 0.1 * rng.normal(size=6)
            rows = {str(k): list(v + 0.3 * rng.normal(size=3)) for k, v in enumerate(seen)}
            ways.append(judged(rows, 0.1 * rng.normal(size=(6, 100)), str(len(ways))))
        found = agreement(*ways).joint
        assert found
        inside.append(found.low - 1e-9 <= tau(worth, other) <= found.high + 1e-9)
    assert np.mean(inside) > 0.93


def test_it_holds_the_value_and_stays_within_what_tau_can_be() -> None:
    rng = np.random.default_rng(5)
    for scale, _ in itertools.product((0.1, 1, 5), range(5)):
        ways = [judged({str(k): list(scale * rng.normal(size=3) + k) for k in range(4)}) for _ in range(2)]
        found = agreement(*ways)
        assert found.value is not None
        assert found.joint
        assert -1 <= found.joint.low <= found.value <= found.joint.high <= 1


def test_equal_rows_are_in_no_order() -> None:
    def block(**worth: float) -> dict[str, Any]:
        rows = [{"label": label, "AP": {"value": value}} for label, value in worth.items()]
        return {"parts": [{"main": "AP"}], "rows": rows}

    summary = {"blocks": {"one": block(a=0.3, b=0.2), "two": block(a=0.0, b=0.0)}, "orders": [], "left_out": {}}
    assert several.sentences(summary) == ["two does not tell a and b apart: their values are equal."]
