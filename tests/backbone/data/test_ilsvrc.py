"""The official archives in small, against the images that were put in."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from backbone.data.ilsvrc import DEVKIT, open_ilsvrc
from backbone.errors import UserError
from tests.backbone.data.making import Member, make_tar, png, values

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
WNIDS = ["n02", "n01", "n03"]  # by the devkit's ids, 1 to 3: not sorted, as in the real one


def class_tar(folder: Path, members: list[Member]) -> bytes:
    return make_tar(folder / "class.tar", members).read_bytes()


def make_train(root: Path) -> Path:
    tars = [
        ("n03.tar", class_tar(root, [("n03_1.JPEG", png(0)), ("n03_7.JPEG", png(1))])),
        ("n01.tar", class_tar(root, [("n01_5.JPEG", png(2))])),
        ("n02.tar", class_tar(root, [(f"n02_{i}.JPEG", png(3 + i)) for i in range(3)])),
    ]
    return make_tar(root / "set" / TRAIN, tars)


def make_devkit(root: Path, truth: list[int]) -> None:
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.zeros(5, fields)
    for place, wnid in enumerate([*WNIDS, "n90", "n91"]):  # the last two are inner nodes of the tree
        synsets[place] = (place + 1, wnid, f"word {place}", 0 if place < 3 else 2)
    file = io.BytesIO()
    savemat(file, {"synsets": synsets[:, None]})
    folder = DEVKIT.removesuffix(".tar.gz") + "/data/"
    lines = "".join(f"{one}\n" for one in truth).encode()
    (root / "set").mkdir(exist_ok=True)
    with tarfile.open(root / "set" / DEVKIT, "w:gz") as tar:
        for name, data in (("meta.mat", file.getvalue()), ("ILSVRC2012_validation_ground_truth.txt", lines)):
            entry = tarfile.TarInfo(folder + name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def make_val(root: Path, numbers: list[int], truth: list[int]) -> Path:
    make_devkit(root, truth)
    return make_tar(root / "set" / VAL, [(f"ILSVRC2012_val_{n:08d}.JPEG", png(n)) for n in numbers])


def test_training_images_lie_in_tars_in_a_tar(tmp_path):
    source = open_ilsvrc(str(make_train(tmp_path)))
    assert source.classes == ("n01", "n02", "n03")
    assert source.labels.tolist() == [2, 2, 0, 1, 1, 1]
    assert values(source) == [0, 1, 2, 3, 4, 5]
    assert source.name(1) == f"{tmp_path}/set/{TRAIN}:n03/n03_7.JPEG"


def test_validation_labels_are_places_in_the_sorted_ids_not_the_devkits(tmp_path):
    source = open_ilsvrc(str(make_val(tmp_path, [3, 1, 2, 4], [1, 2, 3, 1])))
    assert source.classes == ("n01", "n02", "n03")
    assert [source.classes[label] for label in source.labels] == ["n03", "n02", "n01", "n02"]
    assert values(source) == [3, 1, 2, 4]
    assert source.classes == open_ilsvrc(str(make_train(tmp_path))).classes


def test_index_is_made_once(tmp_path, monkeypatch):
    path = str(make_val(tmp_path, [1, 2], [1, 2]))
    first = open_ilsvrc(path)
    with monkeypatch.context() as patch:
        patch.setattr("backbone.data.ilsvrc.open_tar", lambda *_: pytest.fail("read again"))
        assert open_ilsvrc(path).fingerprint == first.fingerprint
    make_devkit(tmp_path, [2, 1, 3, 3, 3, 3, 3])
    assert open_ilsvrc(path).labels.tolist() == [0, 1]


def test_what_is_no_image_is_counted_and_what_has_no_class_refused(tmp_path):
    train = make_train(tmp_path)
    inner = class_tar(tmp_path, [("n04_1.JPEG", png(9)), ("._n04_1.JPEG", b"x"), ("list.txt", b"x")])
    tars = [("n04.tar", inner), ("n01.tar", class_tar(tmp_path, [("n01_1.JPEG", png(8))])), ("README", b"x")]
    source = open_ilsvrc(str(make_tar(train, tars)))
    assert [values(source), source.classes, source.labels.tolist()] == [[9, 8], ("n01", "n04"), [1, 0]]
    (finding,) = source.findings
    assert (finding.what, finding.count) == ("members that are no images", 3)
    with pytest.raises(UserError, match=r"train\.tar: holds a\.JPEG beside the tars of classes"):
        open_ilsvrc(str(make_tar(train, [*tars, ("a.JPEG", png(0))])))
    with pytest.raises(UserError, match=r"train\.tar: holds more/n04\.tar twice"):
        open_ilsvrc(str(make_tar(train, [*tars, ("more/n04.tar", inner)])))


@pytest.mark.parametrize("truth", [b"1\n77\n", b"1\ncat\n", b"1\n-3\n"])
def test_a_damaged_devkit_is_named(tmp_path, truth):
    val = make_val(tmp_path, [1, 2], [1, 2, 3])
    (finding,) = open_ilsvrc(str(val)).findings
    assert (finding.what, finding.count) == ("validation images that the tar lacks", 1)
    devkit = val.parent / DEVKIT
    with tarfile.open(devkit) as tar:
        meta = next(member for member in tar.getmembers() if member.name.endswith("meta.mat"))
        file = tar.extractfile(meta)
        assert file
        data = file.read()
    members = [(meta.name, data), (meta.name.replace("meta.mat", "ILSVRC2012_validation_ground_truth.txt"), truth)]
    devkit.write_bytes(gzip.compress(make_tar(tmp_path / "devkit.tar", members).read_bytes()))
    with pytest.raises(UserError, match=rf"{DEVKIT}: (is damaged|holds no .*, or a label without class)"):
        open_ilsvrc(str(val))
    for damaged in (b"", b"version https://git-lfs", devkit.read_bytes()[:200]):
        devkit.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{DEVKIT}: is damaged .*; fetch it again"):
            open_ilsvrc(str(val))


def test_what_is_missing_or_damaged_is_named(tmp_path):
    train, val = make_train(tmp_path), make_val(tmp_path, [1, 5], [1, 2])
    with pytest.raises(UserError, match=r"val\.tar: holds image 5, but .*devkit.* has labels of 2 images"):
        open_ilsvrc(str(val))
    (val.parent / DEVKIT).unlink()
    with pytest.raises(UserError, match=r"val\.tar: its labels are in ILSVRC2012_devkit_t12\.tar\.gz; put that beside"):
        open_ilsvrc(str(val))
    with pytest.raises(UserError, match="has 2 tars; name one"):
        open_ilsvrc(str(val.parent))
    whole = train.read_bytes()
    with tarfile.open(train) as tar:
        last = tar.getmembers()[-1]
    for cut in (last.offset, last.offset_data + 600, len(whole) - 10240):
        train.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"train\.tar: is cut off"):
            open_ilsvrc(str(train))
    make_tar(train, [("n01.tar", class_tar(tmp_path, [("a.JPEG", png(0))])[:1024])])
    with pytest.raises(UserError, match=r"train\.tar: is cut off"):
        open_ilsvrc(str(train))
    make_tar(val, [("cat.jpg", png(0))])
    with pytest.raises(UserError, match=r"holds neither n01440764\.tar and so on"):
        open_ilsvrc(str(val))
