"""The learning rate against closed forms, and epochs that batches do not divide."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from pydantic import TypeAdapter

from backbone.training.recipe import ConstantSchedule, CosineSchedule, Optim, Schedule, StepsSchedule
from backbone.training.schedule import Events, Steps, after_evaluation, after_log, in_steps, learning_rate

OPTIM = Optim(batch=128, lr=0.1, lr_batch=128)
NONE = Events()


def rates(schedule: Schedule, at: Any, events: Events = NONE, optim: Optim = OPTIM) -> list[float]:
    steps = in_steps(schedule, optim.batch, 50_000)
    return [learning_rate(schedule, optim, steps, step, events) for step in at]


def iterations(**given: Any) -> Schedule:
    return TypeAdapter(Schedule).validate_python({"unit": "iterations", **given})


def test_steps_fall_at_the_milestones_of_the_paper():
    schedule = iterations(kind="steps", total=64_000, milestones=(32_000, 48_000))
    found = rates(schedule, (0, 31_999, 32_000, 47_999, 48_000, 63_999))
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_rate_is_scaled_to_the_batch():
    assert rates(iterations(kind="constant"), [0], optim=Optim(batch=512, lr=0.1, lr_batch=256)) == [0.2]
    assert rates(iterations(kind="constant"), [0], optim=Optim(batch=512, lr=0.1, lr_batch=0)) == [0.1]


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine(warmup: int):
    schedule = iterations(kind="cosine", total=110, warmup=warmup)
    length = 110 - warmup
    found = rates(schedule, (warmup, warmup + length // 2, warmup + length // 4))
    assert found == pytest.approx([0.1, 0.05, 0.05 * (1 + math.cos(math.pi * (length // 4) / length))])
    whole = rates(schedule, range(warmup, 110))
    assert all(a > b > 0 for a, b in pairwise(whole))
    assert whole[-1] == pytest.approx(0.05 * (1 - math.cos(math.pi / length)))  # one step before zero
    assert sum(whole) == pytest.approx(0.05 * (length + 1))  # the cosines cancel but for the first


@pytest.mark.parametrize("kind", ["cosine", "constant", "plateau"])
def test_warmup_is_linear_and_meets_the_peak(kind: Any):
    found = rates(iterations(kind=kind, total=100, warmup=8), range(9))
    assert found[:8] == pytest.approx([0.1 * (i + 1) / 8 for i in range(8)])
    assert found[8] == pytest.approx(0.1)


def test_warmup_of_nearly_everything_divides_by_nothing():
    schedule = CosineSchedule(total=0.0019, warmup=0.0018)  # one step each
    assert rates(schedule, [0]) == pytest.approx([0.1])


def test_constant():
    assert set(rates(iterations(kind="constant", total=50), range(50))) == {0.1}


def test_hold_lasts_until_training_error_is_below_the_mark():
    """Section 4.2: 0.01 until training error is below 80 %, then 0.1; milestones stay where they are."""
    schedule = iterations(kind="steps", total=1000, milestones=(500,), hold_lr=0.01)
    assert rates(schedule, (0, 400, 499)) == [0.01] * 3
    events = after_log(schedule, NONE, 100, 90.0)
    assert events == NONE
    assert after_log(schedule, events, 200, 80.0) == NONE
    events = after_log(schedule, events, 400, 79.9)
    assert events == Events(hold_end=400)
    assert rates(schedule, (0, 399, 400, 499, 500), events) == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01])
    assert after_log(schedule, events, 450, 10.0) == events
    assert after_log(schedule, events, 450, 99.0) == events
    assert after_log(iterations(kind="constant"), NONE, 100, 1.0) == NONE


def test_a_net_that_never_learns_is_not_held_for_ever():
    """At the first milestone at the latest, and all milestones count."""
    schedule = iterations(kind="steps", total=1000, milestones=(500, 750), hold_lr=0.02)
    assert rates(schedule, (499, 500, 750)) == pytest.approx([0.02, 0.01, 0.001])
    limited = iterations(kind="steps", total=1000, milestones=(500, 750), hold_lr=0.02, hold_at_most=200)
    assert rates(limited, (199, 200, 500)) == pytest.approx([0.02, 0.1, 0.01])
    assert rates(limited, (99, 100, 199), Events(hold_end=100)) == pytest.approx([0.02, 0.1, 0.1])
    assert rates(iterations(kind="constant", total=50, hold_lr=0.02), (49,)) == [0.02]


def test_plateau_falls_after_patience_evaluations_without_improvement():
    schedule = iterations(kind="plateau", total=1000, patience=3)
    events, trace = NONE, []
    errors = [50, 40, 40, 41, 39, 39, 39, 39, 39, 39, 39, math.nan, 38]
    for i, error in enumerate(errors):
        events = after_evaluation(schedule, events, 10 * (i + 1), error)
        trace.append((events.waited, events.drops))
    assert [waited for waited, _ in trace] == [0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 0]
    assert events.drops == (80, 110)
    assert events.best_error == 38
    assert rates(schedule, (0, 79, 80, 109, 110), events) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_patience_of_one_falls_at_the_first_standstill():
    schedule = iterations(kind="plateau", patience=1)
    events = after_evaluation(schedule, Events(best_error=40), 5, 40)
    assert (events.drops, events.waited) == ((5,), 0)


def test_evaluations_move_no_other_schedule():
    assert after_evaluation(iterations(kind="constant"), NONE, 5, 1.0) is NONE


def test_rates_and_events_are_pure():
    schedule = iterations(kind="plateau", total=1000, patience=2)
    before = Events(best_error=30, waited=1, drops=(5,))
    assert after_evaluation(schedule, before, 9, 31) == after_evaluation(schedule, before, 9, 31)
    assert before == Events(best_error=30, waited=1, drops=(5,))
    forward = rates(schedule, range(100), before)
    assert rates(schedule, reversed(range(100)), before) == forward[::-1]


def test_epochs_become_steps():
    schedule = StepsSchedule(total=164, milestones=(81, 122))
    steps = in_steps(schedule, 128, 50_000)  # 390.625 steps an epoch
    assert (steps.total, steps.milestones) == (64_063, (31_641, 47_656))  # 64062.5, 31640.6, 47656.25
    assert in_steps(CosineSchedule(total=90, warmup=5), 256, 1_281_167).warmup == 25_023  # 25022.8
    unchanged = in_steps(iterations(kind="steps", total=64_000, milestones=(32_000, 48_000), warmup=400), 128, 50_000)
    assert (unchanged.total, unchanged.milestones, unchanged.warmup) == (64_000, (32_000, 48_000), 400)


def test_whole_numbers_of_steps_stay_whole():
    for batch in range(1, 60):
        for samples in range(1, 400, 7):
            for total in (1, 30, 90):
                exact = math.ceil(Fraction(total * samples, batch))
                assert in_steps(ConstantSchedule(total=total), batch, samples).total == exact


@pytest.mark.parametrize(("batch", "samples"), [(10, 10), (7, 20), (20, 20), (3, 9), (20, 7), (64, 1000)])
def test_epoch_ends_with_the_batch_that_holds_its_last_sample(batch: int, samples: int):
    """The step's positions are written out and the last sample of an epoch is looked for among them."""
    steps = Steps(total=100, milestones=(), warmup=0, hold=0, batch=batch, num_samples=samples)
    for step in range(1, 101):
        consumed = range((step - 1) * batch, step * batch)
        assert steps.ends_epoch(step) == any(position % samples == samples - 1 for position in consumed)
        assert steps.epochs_done(step) == sum(p % samples == samples - 1 for p in range(step * batch))
