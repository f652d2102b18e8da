"""Situations from public bug reports that were read wrongly, in silence, or ended in a traceback."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from backbone.data import augment
from backbone.data.augment import evaluation_view
from backbone.data.options import StoredData
from backbone.data.sources import in_both, open_source, remarks
from backbone.errors import UserError
from backbone.training.pretrain import statistics
from tests.backbone.data.making import make_tar, png


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(3))


def rows(path: Path, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.array([{"bytes": png(1), "path": None}] * 2, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image, "label": [0, 1], **more}), path)


def test_a_class_folder_that_is_the_set_itself_is_no_class(tmp_path: Path) -> None:
    put(tmp_path / "s", "a/1.png", "b/2.png")
    (tmp_path / "s/all").symlink_to(".")
    source = open_source("imagefolder", str(tmp_path / "s"))
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [0, 1]
    assert any("links to a folder above" in line and "s/all" in line for line in remarks(source))


def test_two_links_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "s", "a/1.png", "b/2.png")
    (tmp_path / "s/a/x").symlink_to("../b")
    (tmp_path / "s/b/y").symlink_to("../a")
    assert len(open_source("imagefolder", str(tmp_path / "s"))) == 4


def test_braces_may_be_longer_than_a_name(tmp_path: Path) -> None:
    names = [f"{i:06d}" for i in range(60)]
    for name in names:
        make_tar(tmp_path / f"t/s-{name}.tar", [("a.png", png(1)), ("a.cls", b"0")])
    assert len(open_source("webdataset", f"{tmp_path}/t/s-{{{','.join(names)}}}.tar")) == 60


@pytest.mark.parametrize("kind", ["imagefolder", "webdataset", "parquet"])
def test_a_folder_without_rights_is_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kw: Any) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.ls", refuse)
    with pytest.raises(UserError, match="Permission denied; chmod"):
        open_source(kind, str(tmp_path))


def test_a_link_in_a_circle_among_shards_is_named(tmp_path: Path) -> None:
    make_tar(tmp_path / "t/a.tar", [("a.png", png(1)), ("a.cls", b"0")])
    (tmp_path / "t/z.tar").symlink_to("z.tar")
    with pytest.raises(UserError, match=r"z\.tar is a link that leads nowhere"):
        open_source("webdataset", str(tmp_path / "t"))


def test_hidden_folders_in_tars_are_other_programs(tmp_path: Path) -> None:
    keys = ("./x/a", "x/.ipynb_checkpoints/a", "__MACOSX/a", "@eaDir/a")
    of_each = (("png", png(1)), ("cls", b"0"))
    make_tar(tmp_path / "t/a.tar", [(f"{key}.{end}", data) for key in keys for end, data in of_each])
    source = open_source("webdataset", str(tmp_path / "t"))
    assert len(source) == 1
    assert any(line.startswith("6 hidden members") for line in remarks(source))


@pytest.mark.parametrize(
    "column", [{"split": pa.array(["train", "test"], pa.string_view())}, {"Split": ["train", "test"]}]
)
def test_split_columns(tmp_path: Path, column: dict[str, Any]) -> None:
    rows(tmp_path / "p/a.parquet", **column)
    with pytest.raises(UserError, match="several splits by the column"):
        open_source("parquet", str(tmp_path / "p"))


def test_two_versions_of_a_series_are_said(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        rows(tmp_path / f"p/{name}.parquet")
    assert any("series of files of one name" in line for line in remarks(open_source("parquet", str(tmp_path / "p"))))


def test_a_strip_is_judged_by_its_centre_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluation_view(np.full((1, 30000, 3), 7, np.uint8), 224, 0.875).shape == (224, 224, 3)
    image = np.random.default_rng(0).integers(0, 256, (40, 300, 3), np.uint8)
    whole = evaluation_view(image, 64, 0.875)
    monkeypatch.setattr(augment, "PIXELS", 1000)
    centre = evaluation_view(image, 64, 0.875)
    assert np.abs(whole.astype(int) - centre).max() <= 1
    assert not np.array_equal(whole[:, ::-1], whole)


@pytest.mark.parametrize("kind", ["dataset", "pixel"])
def test_a_channel_of_one_value_is_named(tmp_path: Path, kind: str) -> None:
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        pixels[..., 2] = 0
        (tmp_path / f"s/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"s/{i % 2}/{i}.png")
    data = StoredData(source="imagefolder", train=f"{tmp_path}/s", val=f"{tmp_path}/s", size=32, normalize=kind)
    with pytest.raises(UserError, match=r"blue of data\.train is of one value in all 8 .*--data\.normalize imagenet"):
        statistics(open_source("imagefolder", f"{tmp_path}/s"), data)


def test_val_that_is_a_link_to_train(tmp_path: Path) -> None:
    put(tmp_path / "train", "a/1.png", "b/2.png")
    (tmp_path / "val").symlink_to("train")
    assert in_both(*(open_source("imagefolder", str(tmp_path / one)) for one in ("train", "val")))


@pytest.mark.parametrize("given", [{"label": "cat", "cls": 0}, {"label": None, "cls": 0}])
def test_json_that_has_the_number_in_cls(tmp_path: Path, given: dict[str, Any]) -> None:
    make_tar(tmp_path / "t/a.tar", [("a.png", png(1)), ("a.json", json.dumps(given).encode())])
    assert open_source("webdataset", str(tmp_path / "t")).labels.tolist() == [0]


def test_files_without_rows_are_passed_over(tmp_path: Path) -> None:
    rows(tmp_path / "p/b.parquet")
    pq.write_table(pa.table({"image": pa.nulls(0), "label": pa.nulls(0)}), tmp_path / "p/a.parquet")
    source = open_source("parquet", str(tmp_path / "p"))
    assert source.labels.tolist() == [0, 1]
    assert source.data(0) == png(1)
    assert any("files without rows" in line and "a.parquet" in line for line in remarks(source))


def test_columns_of_other_names_are_told_their_renaming(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    table = pa.table({"jpg": pa.array([png(1)] * 2, pa.binary()), "cls": [0, 1], "note": ["a", "b"]})
    pq.write_table(table, tmp_path / "p/a.parquet")
    with pytest.raises(UserError, match=r"rename_column\('jpg', 'image'\) and .*rename_column\('cls', 'label'\)"):
        open_source("parquet", str(tmp_path / "p"))
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "label": [0, 1]}), tmp_path / "p/a.parquet")
    with pytest.raises(UserError, match=r"cast_column\('image', datasets\.Image\(\)\) makes of paths"):
        open_source("parquet", str(tmp_path / "p"))
