"""Image folders, against torchvision."""

import shutil

import numpy as np
import pytest

from backbone.data.sources import open_source
from backbone.errors import BadImage, UserError
from tests.backbone.data.making import make_folder, png, values


def test_folder_has_torchvisions_order_and_labels(tmp_path):
    from torchvision.datasets import ImageFolder  # not above: spawned processes would import it too

    root = make_folder(tmp_path / "train")
    theirs = ImageFolder(root)
    ours = open_source("imagefolder", str(root))
    assert list(ours.classes) == theirs.classes
    assert [(ours.name(i), int(ours.labels[i])) for i in range(len(ours))] == theirs.samples
    assert ours.labels.dtype == np.int64
    for i in range(len(theirs)):
        assert (ours.image(i) == np.asarray(theirs[i][0])).all()


def test_folder_passes_over_other_programs_notes_and_follows_links(tmp_path):
    root = make_folder(tmp_path / "train")
    (root / ".ipynb_checkpoints").mkdir()
    (root / "a" / "._A.png").write_bytes(b"AppleDouble")
    shutil.move(root / "b", tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    source = open_source("imagefolder", str(root))
    assert source.classes == ("a", "b", "c c")
    assert sorted(values(source)) == list(range(8))


def test_folder_errors_say_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such directory; looked for .*<class>"):
        open_source("imagefolder", str(tmp_path / "nowhere"))
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        open_source("imagefolder", str(tmp_path / "data"))
    root = make_folder(tmp_path / "data" / "train")
    (tmp_path / "data" / "val").mkdir()
    with pytest.raises(UserError, match=r"holds the splits train, val.*give one"):
        open_source("imagefolder", str(tmp_path / "data"))
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in empty; looked for \*\.jpg"):
        open_source("imagefolder", str(root))
    with pytest.raises(UserError, match=r"imagefolders; there are imagefolder, webdataset, parquet"):
        open_source("imagefolders", str(root))


def test_folder_with_bad_images_names_them(tmp_path):
    root = make_folder(tmp_path / "train")
    (root / "a" / "A.png").write_bytes(b"")
    source = open_source("imagefolder", str(root))
    with pytest.raises(BadImage, match=rf"^{root}/a/A\.png: is empty"):
        source.image(0)
    (root / "a" / "z.png").unlink()
    with pytest.raises(BadImage, match=r"a/z\.png: No such file"):
        source.image(1)
    with pytest.raises(IndexError):
        source.image(len(source))
    with pytest.raises(IndexError):
        source.image(-1)


def test_fingerprint_ignores_the_place_and_notices_everything_else(tmp_path):
    root = make_folder(tmp_path / "one")
    first = open_source("imagefolder", str(root)).fingerprint
    assert len(first) == 64
    shutil.copytree(root, tmp_path / "two" / "deeper")
    assert open_source("imagefolder", str(tmp_path / "two" / "deeper")).fingerprint == first
    seen = {first}
    for change in (
        lambda: (root / "a" / "z.png").rename(root / "a" / "y.png"),
        lambda: (root / "a" / "y.png").write_bytes(png(4, 40, 60)),
        lambda: (root / "a").rename(root / "aa"),
        lambda: shutil.move(root / "b" / "2.png", root / "c c" / "2.png"),
    ):
        change()
        seen.add(open_source("imagefolder", str(root)).fingerprint)
    assert len(seen) == 5


def test_folder_is_shared_through_the_cache(tmp_path, cache):
    make_folder(tmp_path / "train")
    open_source("imagefolder", str(tmp_path / "train"))
    before = next(cache.glob("imagefolder-*.npz")).stat().st_mtime_ns
    open_source("imagefolder", str(tmp_path / "train"))
    assert [path.stat().st_mtime_ns for path in cache.glob("imagefolder-*.npz")] == [before]
