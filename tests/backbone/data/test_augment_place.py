"""Where a view's pixels come from in the image, which is where boxes go."""

import numpy as np
import pytest

from backbone.data.augment import TrainingView, evaluation_place
from backbone.data.options import Augment, CifarAugment, ModernAugment, NoAugment, PaperAugment
from backbone.data.stream import mix


@pytest.mark.parametrize(
    "options", [ModernAugment(area=(0.3, 1)), PaperAugment(shorter_side=(70, 90)), CifarAugment(), NoAugment()]
)
@pytest.mark.parametrize("shape", [(120, 90), (75, 140), (64, 64)])
def test_a_rectangle_is_where_its_place_says(options: Augment, shape: tuple[int, int]):
    """Painted white, its corners are found again in the view: boxes go along with pixels."""
    image, box = np.zeros((*shape, 3), np.uint8), np.array([[20.0, 24, 60, 54]])
    image[24:54, 20:60] = 255
    view = TrainingView(options, 64, 0.875, (0, 0, 0))
    flips = set()
    for key in map(mix, range(40)):
        place = view.place(*shape, key)
        flips.add(place.flips)
        ((x1, y1, x2, y2),) = place.seen(place.into_view(box))
        planes = np.empty((3, view.size, view.size), np.uint8)
        view.fill(planes, image, key, None)
        white = planes[0] > 127
        if min(x2 - x1, y2 - y1) < 3:
            continue
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        np.testing.assert_allclose(found, (x1, y1, x2, y2), atol=1.01)  # a half-covered pixel is white or not
    assert flips == ({False} if isinstance(options, NoAugment) else {False, True})


def test_boxes_come_back_from_the_evaluation_view():
    boxes = np.array([[10.0, 20, 50, 60], [0, 0, 90, 120]])
    for size, crop_pct in ((64, 0.875), (224, 1.0)):
        place = evaluation_place(120, 90, size, crop_pct)
        np.testing.assert_allclose(place.into_image(place.into_view(boxes)), boxes)
