"""Which splits names speak of, and what to type to name one of them."""

import os
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from backbone.cli import validate
from backbone.data.doctor import examine
from backbone.data.sources import in_both, open_source
from backbone.data.splits import by_split, split_of_folder, splits_among
from backbone.errors import UserError
from backbone.training.pretrain import prepare
from backbone.training.recipe import Recipe
from tests.backbone.data.making import make_parquet, make_tar, png, samples

DATA = os.environ.get("RAYBONE_TEST_DATA", "")
PAIRS = [
    (["train-00000-of-00002", "train-00001-of-00002"], ["test-00000-of-00001"]),
    (["toys-train-000000", "toys-train-000001"], ["toys-val-000000", "toys-val-000001"]),
    (["TRAIN"], ["VALIDATION"]),
    (["myTrain0", "myTrain1"], ["myTest0"]),
    (["a.training.1", "a.training.2"], ["a.valid.1"]),
    (["traindata1", "traindata2"], ["testset"]),
    (["digits"], ["digits_test"]),
    (["digits-0", "digits-1"], ["digits-eval-0"]),
    (["1train", "2train", "12train"], ["3dev"]),
]


@pytest.mark.parametrize(("train", "val"), PAIRS, ids=lambda names: names[0])
@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_files_of_two_splits_are_refused_and_what_is_offered_reads_one(
    tmp_path: Path, kind: str, train: list[str], val: list[str]
):
    suffix = {"parquet": "parquet", "webdataset": "tar"}[kind]
    for place, name in enumerate([*train, *val]):
        numbers = range(10 * place, 10 * place + 4)
        if kind == "parquet":
            make_parquet(tmp_path / "my data" / f"{name}.parquet", numbers)
        else:
            make_tar(tmp_path / "my data" / f"{name}.tar", samples(numbers))
    for location in (f"{tmp_path}/my data", f"{tmp_path}/my data/*.{suffix}", f"{tmp_path}/my data/*"):
        with pytest.raises(UserError, match="of several splits by their names") as refusal:
            open_source(kind, location)
        with pytest.raises(UserError, match="of several splits by their names"):
            examine(kind, location)
        words = shlex.split(str(refusal.value).partition("Name one: ")[2].partition(" (for")[0])
        assert words[::2] == ["--data.train", "--data.val"]
        assert [len(open_source(kind, words[1])), len(open_source(kind, words[3]))] == [4 * len(train), 4 * len(val)]
    both = f"{tmp_path}/my data/{{{','.join([*train, *val])}}}.{suffix}"
    if "digits" not in train[0]:  # one that names both is believed
        assert len(open_source(kind, both)) == 4 * len([*train, *val])


def test_subfolders_of_splits_are_named_too(tmp_path: Path):
    for split in ("train", "test"):
        make_tar(tmp_path / "set" / split / "0.tar", samples(range(3)))
    typed = f"--data.train {tmp_path}/set/train --data.val {tmp_path}/set/test"
    with pytest.raises(UserError, match=rf"no \*\.tar in this directory.*test \(1\), train \(1\)\. Name one: {typed}"):
        open_source("webdataset", f"{tmp_path}/set")
    with pytest.raises(UserError, match=f"Name one: {typed}"):
        open_source("webdataset", f"{tmp_path}/set/*/0.tar")
    assert len(open_source("webdataset", f"{tmp_path}/set/{{train,test}}/0.tar")) == 6
    make_parquet(tmp_path / "hub" / "data" / "train-0.parquet", range(3))
    with pytest.raises(UserError, match=rf"in its folders data \(1\)\. Name one: --data\.train {tmp_path}/hub/data"):
        open_source("parquet", f"{tmp_path}/hub")


@pytest.mark.parametrize(
    "names",
    [
        ["train-0", "train-1"],
        ["train", "extra"],  # SVHN
        ["train-test-split-0", "train-test-split-1"],
        ["latest-0", "contest-1"],
        ["test-0", "test-1"],
        ["shard-000000", "shard-000001"],
    ],
    ids=lambda names: names[0],
)
def test_one_split_is_one(names: list[str]):
    assert by_split(names) == {}


@pytest.mark.parametrize(
    "paths",
    [
        ["train/cat", "val/cat"],
        ["Training/cat", "Testing/cat"],
        ["valid/cat", "test/cat"],
        ["train2017/cat", "val2017/cat"],
        ["training_set/cat", "test_set/cat"],
        ["set/train/cat", "set/test/cat"],
        ["cat/train", "cat/test", "dog/train", "dog/test"],
        ["images/train/cat", "images/val/cat", "labels/train"],
    ],
    ids=lambda paths: paths[0],
)
def test_image_folders_of_splits_are_refused_wherever_these_lie(tmp_path: Path, paths: list[str]):
    for path in paths:
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "1.png").write_bytes(png(1))
    with pytest.raises(UserError, match=r"holds the splits .*Name one: --data\."):
        open_source("imagefolder", str(tmp_path))


def test_splits_inside_a_tar_and_in_a_column_are_refused(tmp_path: Path):
    make_tar(tmp_path / "tars" / "0.tar", samples(range(6), "train/n{label}/{i}"))
    assert len(open_source("webdataset", f"{tmp_path}/tars")) == 6
    make_tar(tmp_path / "tars" / "1.tar", samples(range(6, 9), "val/n{label}/{i}"))
    with pytest.raises(
        UserError, match=r"0\.tar \.\.: their folders are the splits train, val, and .*pack each by itself"
    ):
        open_source("webdataset", f"{tmp_path}/tars")
    path = make_parquet(tmp_path / "rows" / "x.parquet", range(6))
    table = pq.read_table(path)
    for column, values in (("split", ["train"] * 6), ("text", ["train", "test"] * 3)):
        pq.write_table(table.append_column(column, [values]), path)
        assert len(open_source("parquet", str(path))) == 6
    pq.write_table(table.append_column("split", [["train"] * 4 + ["validation"] * 2]), path)
    with pytest.raises(
        UserError, match=r"x\.parquet: its rows are of several splits by the column split \(train, valid"
    ):
        open_source("parquet", str(path))


def test_files_that_both_splits_read_are_said_in_training_and_an_error_to_the_doctor(tmp_path: Path):
    for number in range(4):
        make_tar(tmp_path / f"part-{number}.tar", samples(range(6 * number, 6 * number + 6)))
    train, val = f"{tmp_path}/part-{{0..2}}.tar", f"{tmp_path}/part-{{2..3}}.tar"
    assert in_both(open_source("webdataset", train), open_source("webdataset", val)) == [f"{tmp_path}/part-2.tar"]
    (finding,) = [
        one
        for one in examine("webdataset", train, val, check_images=False).findings
        if one.what == "files that both splits read"
    ]
    assert (finding.severity, finding.examples) == ("error", [f"{tmp_path}/part-2.tar"])
    tree = {
        "name": "r",
        "run": {"storage": f"{tmp_path}/runs"},
        "data": {"source": "webdataset", "train": train, "val": val},
    }
    said: list[str] = []
    prepare(validate(Recipe, tree, "r"), said.append)
    told = f"data.val: is read for training, too ({tmp_path}/part-2.tar): what was trained on does not test"
    assert any(told in line for line in said)


def test_classes_may_be_called_like_splits(tmp_path: Path):
    for name in ("train", "bullet_train", "test_tube", "val d'isere", "bus"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(1))
    assert "train" in open_source("imagefolder", str(tmp_path)).classes
    assert split_of_folder("train") == "train"
    assert splits_among(["train", "bullet_train", "test_tube"]) == {}


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="RAYBONE_TEST_DATA names no folder of real images")
def test_the_hubs_cifar10_is_not_read_as_one_split(tmp_path: Path):
    with pytest.raises(UserError, match=rf"Name one: --data\.train '{DATA}/cifar10/train-\*\.parquet' --data\.val "):
        open_source("parquet", f"{DATA}/cifar10", str(tmp_path))
