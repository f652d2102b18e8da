"""What a net is shown of an image: the pixels that torchvision's transforms give."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from backbone.evaluate.views import view_for, views
from backbone.inputs import InputConvention
from tests.backbone.evaluate.test_protocols import SIZE, Photos, ours, pair


def test_images_are_filtered_as_the_net_was_made_for() -> None:
    """Most of timm's nets were trained for bicubic images."""
    image = Photos().image(0)
    mode = transforms.InterpolationMode.BICUBIC
    inputs = InputConvention(size=SIZE, interpolation="bicubic")
    wanted = transforms.CenterCrop(SIZE)(transforms.Resize(73, mode)(Image.fromarray(image)))
    assert np.array_equal(views(image, view_for(inputs, "1-crop"))[0], np.asarray(wanted))
    wanted = transforms.Resize(SIZE, mode)(Image.fromarray(image))
    assert np.array_equal(views(image, view_for(inputs, "multi-scale", (224,)))[0], np.asarray(wanted))
    member, _ = pair()
    other = member._replace(inputs=inputs)
    for protocol in ("1-crop", "10-crop", "multi-scale"):
        assert not torch.equal(ours(member, Photos(), protocol), ours(other, Photos(), protocol))
    with pytest.raises(ValueError, match="interpolation cubic: PIL has nearest, "):
        views(image, view_for(InputConvention(interpolation="cubic"), "1-crop"))
