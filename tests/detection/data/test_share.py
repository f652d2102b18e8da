"""Shares of the labels: nested, the same wherever they are taken, and nothing but a part of the images."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbone.errors import UserError
from detection.data.options import CocoData, ScenesData
from detection.data.share import Share
from detection.data.sources import open_sources, open_val
from detection.data.synthetic import SyntheticScenes
from tests.detection.data.making import make_coco


@pytest.fixture
def source() -> SyntheticScenes:
    return SyntheticScenes(3, 200, 32, (1, 2), "train")


def test_shares_are_nested_and_of_the_size_asked_for(source: SyntheticScenes) -> None:
    taken = {share: Share(source, share) for share in (0.01, 0.1, 0.3, 0.999)}
    assert [len(part) for part in taken.values()] == [2, 20, 60, 200]
    ids = [set(part.image_ids.tolist()) for part in taken.values()]
    assert ids[0] < ids[1] < ids[2] < ids[3]
    assert len({part.fingerprint for part in taken.values()} | {source.fingerprint}) == 5
    # A hash and no slice: about half of the images lie in the first half.
    assert 15 < sum(image_id <= 100 for image_id in ids[2]) < 45


def test_which_images_depends_on_their_ids_alone(source: SyntheticScenes) -> None:
    """Other scenes of other sizes under the same ids: the same are chosen. So are they after pickling."""
    part, other = Share(source, 0.1), Share(SyntheticScenes(4, 200, 64, (3, 3), "train"), 0.1)
    assert part.image_ids.tolist() == other.image_ids.tolist()
    again = pickle.loads(pickle.dumps(part))
    assert (again.fingerprint, again.image_ids.tolist()) == (part.fingerprint, part.image_ids.tolist())


def test_it_is_these_images_and_nothing_else(source: SyntheticScenes) -> None:
    part = Share(source, 0.1)
    for i, image_id in enumerate(part.image_ids.tolist()):
        whole = image_id - 1
        np.testing.assert_array_equal(part.image(i), source.image(whole))
        for one, same in zip(part.objects(i, masks=True), source.objects(whole, masks=True), strict=True):
            np.testing.assert_array_equal(one, same)
        assert part.name(i) == source.name(whole)
        assert part.num_objects()[i] == source.num_objects()[whole]
    truth = part.ground_truth()
    assert [one["id"] for one in truth["images"]] == part.image_ids.tolist()
    assert part.ground_truth(np.array([3]))["images"] == truth["images"][3:4]
    assert part.dropped == {"images beyond data.share 0.1": 180}
    with pytest.raises(IndexError, match="image 20 of 20"):
        part.image(20)


def test_it_says_which_classes_have_no_object(source: SyntheticScenes) -> None:
    part = Share(source, 0.01)
    seen = {label for i in range(2) for label in part.objects(i).labels.tolist()}
    absent = [name for label, name in enumerate(source.categories.names, 1) if label not in seen]
    assert part.absent() == absent
    assert part.told() == f"2 of 200 (data.share 0.01, {len(seen)} of 12 classes)"
    (finding,) = part.findings
    assert (finding.severity, finding.count) == ("warning", len(absent))
    assert finding.as_line().startswith(f"{len(absent)} classes without an object in data.share 0.01 (")


def test_training_alone_has_a_share() -> None:
    data = ScenesData(train_images=40, val_images=7, render=32)
    some = data.model_copy(update={"share": 0.25})
    train, val = open_sources(some)
    assert (len(train), len(val)) == (10, 7)
    assert val.fingerprint == open_val(data).fingerprint
    assert isinstance(open_sources(data)[0], SyntheticScenes)


def test_shares_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.share 0\.01 of 40 images is no image at all; give 0\.025 or more"):
        open_sources(ScenesData(train_images=40, render=32, share=0.01))
    assert len(open_sources(ScenesData(train_images=40, render=32, share=0.025))[0]) == 1
    whole, _ = open_sources(CocoData(train=str(make_coco(tmp_path / "a")), val=str(make_coco(tmp_path / "b"))))
    chosen = int(Share(whole, 0.25).image_ids[0])

    def elsewhere(tree: dict[str, Any]) -> None:
        tree["annotations"] = [one for one in tree["annotations"] if one["image_id"] != chosen]

    place = str(make_coco(tmp_path / "c", elsewhere))
    with pytest.raises(UserError, match=r"data\.share 0\.25: none of its 1 images has an object; give more"):
        open_sources(CocoData(train=place, val=place, share=0.25))
