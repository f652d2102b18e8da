"""The cost model by hand: every term alone, with round numbers."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backbone.errors import UserError
from backbone.training.cost import BUCKET, Rates, Shape, lines, predict, read_rates, ring_all_reduce
from backbone.training.plan import describe
from backbone.training.recipe import Recipe

RATES = Rates(
    measured="ResNet-50 on a round number",
    multiply_adds=4_000_000_000,
    images_per_second=1000,
    update_bytes_per_second=1e10,
    loader_images_per_second=100,
    bandwidth=1e9,
    latency=1e-4,
)
SHAPE = Shape(
    workers=8,
    batch=1024,
    micro_batch=128,
    multiply_adds=4_000_000_000,
    gradient_bytes=100_000_000,
    train_images=102_400,
    val_images=8000,
    steps=9000,
    evaluations=91,
    loader_cores=16,
)


def test_ring() -> None:
    """Each of 4 workers sends 6 quarters of the bytes in 6 messages; one worker nothing."""
    assert ring_all_reduce(1, 4e9, 1e9, 1.0) == 0
    assert ring_all_reduce(4, 1e6, 1e6, 0.0) == pytest.approx(1.5)
    assert ring_all_reduce(4, 1e6, 1e12, 0.5) == pytest.approx(3, rel=1e-4)
    assert ring_all_reduce(2, 2 * BUCKET, float(BUCKET), 0.25) == pytest.approx(2 + 2 * 2 * 0.25)
    many = ring_all_reduce(10**6, 1e6, 1e6, 0.0)
    assert many == pytest.approx(2, rel=1e-5), "twice the bytes, however many there are"


def test_hidden_all_reduce() -> None:
    """175 ms of bandwidth and 4 buckets x 14 messages x 0.1 ms; 85 ms of backward hide some of it."""
    cost = predict(SHAPE, RATES)
    assert cost.compute == pytest.approx(0.128)
    assert cost.all_reduce == pytest.approx(0.175 + 0.0056)
    assert cost.exposed == pytest.approx(0.1806 - 0.128 * 2 / 3)
    assert cost.update == pytest.approx(0.01)
    assert cost.step == pytest.approx(0.128 + cost.exposed + 0.01)
    assert cost.data_wait == pytest.approx(0)
    assert cost.epoch == pytest.approx(100 * cost.step)
    assert cost.evaluation == pytest.approx(1000 * 0.001 / 3 * 1.875), "16 loader cores give 1600 images/s, not 3000"
    assert cost.total == pytest.approx(9000 * cost.step + 91 * cost.evaluation)
    assert cost.device_hours == pytest.approx(8 * cost.total / 3600)


def test_all_hidden_behind_a_fast_link_and_accumulation_adds_compute_alone() -> None:
    fast = RATES.model_copy(update={"bandwidth": 1e12})
    assert predict(SHAPE, fast).step == pytest.approx(0.138)
    accumulated = predict(replace(SHAPE, micro_batch=32), RATES)
    assert accumulated.compute == pytest.approx(0.128)
    assert accumulated.exposed == pytest.approx(0.1806 - 0.032 * 2 / 3), "the last micro-batch alone hides"


def test_loaders() -> None:
    fast = RATES.model_copy(update={"bandwidth": 1e12, "latency": 0.0})
    enough = predict(SHAPE, fast)
    assert enough.loader_cores == 10
    short = predict(replace(SHAPE, loader_cores=5), fast)
    assert (short.step, short.data_wait) == pytest.approx((128 / 500, 1 - 0.138 / 0.256))
    alone = predict(replace(SHAPE, loader_cores=0), fast)
    assert alone.step == pytest.approx(0.138 + 1.28)


def test_other_nets_and_uneven_shares() -> None:
    fast = RATES.model_copy(update={"bandwidth": 1e12})
    assert predict(replace(SHAPE, multiply_adds=8_000_000_000), fast).compute == pytest.approx(0.256)
    uneven = predict(replace(SHAPE, workers=3), fast)
    assert uneven.compute == pytest.approx(3 * 0.128), "8 micro-batches on 3 workers: 3, 3, 2"


def test_workers_on_the_same_cores_take_turns_and_hide_nothing() -> None:
    cpu = RATES.model_copy(update={"devices": 2, "overlaps": False})
    four, two = (predict(replace(SHAPE, workers=n, loader_cores=0), cpu) for n in (4, 2))
    assert four.compute == pytest.approx(two.compute) == pytest.approx(0.512)
    assert four.loading == pytest.approx(two.loading)
    assert four.exposed == four.all_reduce
    assert (four.update, two.update) == pytest.approx((0.02, 0.01)), "each of them in full"
    assert four.step == pytest.approx(four.compute + four.update + four.all_reduce + four.loading)


def test_text_and_files(tmp_path: Path) -> None:
    text = dict(lines(predict(SHAPE, RATES), SHAPE, RATES))
    assert text["rates"] == "ResNet-50 on a round number; as measured"
    assert "233 ms: compute 128 ms, update 10 ms, all-reduce 181 ms of which 95.3 ms shows" in text["step time"]
    assert text["loaders"] == "6 core(s) a worker keep up; data.workers is 16"
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"rows": [], "rates": RATES.model_dump()}))
    assert read_rates(str(file)) == RATES
    file.write_text(json.dumps({"bandwidth": 0}))
    with pytest.raises(UserError, match=r"measured: Field required.*bandwidth: Input should be greater than 0"):
        read_rates(str(file))
    with pytest.raises(UserError, match="No such file"):
        read_rates(str(tmp_path / "none.json"))
    file.write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        read_rates(str(file))


def test_the_dry_run_predicts_from_a_file(
    tmp_path: Path, tiny: Callable[..., Recipe], run_job: Callable[..., subprocess.CompletedProcess]
) -> None:
    recipe = tiny({"run.storage": str(tmp_path)})
    assert "--rates FILE" in describe(recipe, 160, 50, 12)
    text = describe(recipe, 160, 50, 12, RATES)
    labels = {line[:11].strip(): line[11:] for line in text.splitlines()}
    assert labels["rates"].startswith("ResNet-50 on a round number; scaled by 0.003")
    assert "an evaluation" in labels["time"]
    (tmp_path / "rates.json").write_text(RATES.model_dump_json())
    words = ["--data.train_images", "160", "--scaling.num_workers", "0", "--rates", tmp_path / "rates.json"]
    done = run_job("pretrain", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    assert "device-hours" in done.stdout
    done = run_job("pretrain", "--rates", "--dry-run")
    assert (done.returncode, done.stderr) == (2, "error: --rates: name the file of measured rates\n")
