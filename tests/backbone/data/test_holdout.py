"""Images held out of training: each image on one side, always the same ones, read as before."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backbone.data.holdout import Part, hold_out
from backbone.data.options import StoredData
from backbone.data.remote import _opened
from backbone.data.sources import in_both, open_source
from backbone.errors import UserError
from backbone.training.pretrain import open_data
from tests.backbone.data.making import ALL, make_folder, make_parquet, make_shards, values


def parquet(root: Path, images: int = 30) -> str:
    make_parquet(root / "parquet" / "x.parquet", range(images))
    return str(root / "parquet")


@pytest.mark.parametrize("kind", ["imagefolder", "webdataset", "parquet"])
def test_every_image_is_on_one_side(kind: str, tmp_path: Path) -> None:
    made: dict[str, Callable[[Path], object]] = {
        "imagefolder": make_folder,
        "webdataset": make_shards,
        "parquet": lambda root: make_parquet(root / "x.parquet", range(9)),
    }
    made[kind](tmp_path / kind)
    place = str(tmp_path / kind) + (f"/{ALL}" if kind == "webdataset" else "")
    whole = open_source(kind, place)
    train, val = hold_out(whole, 3)
    assert (len(train), len(val)) == (len(whole) - 3, 3)
    by_name = {whole.name(i): (values(whole)[i], int(whole.labels[i])) for i in range(len(whole))}
    found = [(part.name(i), (values(part)[i], int(part.labels[i]))) for part in (train, val) for i in range(len(part))]
    assert dict(found) == by_name
    assert len(found) == len(by_name)
    assert train.classes == val.classes == whole.classes
    assert not in_both(train, val)


def test_which_ones_never_changes_and_is_not_the_end_of_the_listing(tmp_path: Path) -> None:
    """Data sets are often written class by class."""
    whole = open_source("parquet", parquet(tmp_path))
    _, val = hold_out(whole, 10)
    assert values(val) == [4, 6, 7, 10, 13, 18, 20, 25, 26, 27]
    copy = pickle.loads(pickle.dumps(val))
    assert len(pickle.dumps(val)) < 1000
    assert isinstance(copy, Part)
    assert values(copy) == values(val)
    assert (copy.labels == val.labels).all()
    assert copy.fingerprint == val.fingerprint
    prints = {part.fingerprint for n in (9, 10) for part in hold_out(whole, n)} | {whole.fingerprint}
    assert len(prints) == 5


def test_a_run_validates_on_what_it_holds_out(tmp_path: Path) -> None:
    place = parquet(tmp_path)
    data = StoredData(source="parquet", train=place, val=str(tmp_path / "not read"), hold_out=6)
    train, val = open_data(data, 0)
    assert (len(train), len(val)) == (24, 6)
    assert sorted(values(train) + values(val)) == list(range(30))
    assert not np.intersect1d(values(train), values(val)).size
    elsewhere = _opened(data, train.fingerprint, "another node")  # data.remote_cpus
    assert values(elsewhere) == values(train)
    with pytest.raises(UserError, match=r"data.hold_out 30: data.train has 30 images; hold out fewer"):
        open_data(data.model_copy(update={"hold_out": 30}), 0)
