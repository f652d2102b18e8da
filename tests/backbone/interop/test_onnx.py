# ruff: noqa: E402  (what follows needs a package that may be absent)
"""An ONNX export answers as our net for every batch and size, with the way of a pixel inside."""

import json

import pytest
import torch

pytest.importorskip("onnxscript", reason="torch exports ONNX through it")
onnxruntime = pytest.importorskip("onnxruntime", reason="it runs what was exported")

from backbone.interop import onnx as ours
from backbone.options import NetOptions
from tests.backbone.interop.conftest import BGR, CLASSES, INPUTS, assert_equal, maps_of, source_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        (NetOptions(depth=18), INPUTS),
        (NetOptions(net="vgg", depth=11, width=0.1), BGR),
    ],
    ids=["18", "vgg-BGR"],
)
def test_any_batch_and_size(options: NetOptions, inputs) -> None:
    source = source_of(options, inputs)
    session = onnxruntime.InferenceSession(ours.write(source)["model.onnx"], providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("images", "tensor(uint8)")
    names = [output.name for output in session.get_outputs()]
    assert names == [*source.net.stages, *(["logits"] if options.net != "vgg" else [])]
    for shape in ((1, 3, 64, 64), (3, 3, 96, 160), (2, 3, 67, 130)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        found = dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))
        assert_equal(found, maps_of(source, images))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    assert json.loads(about["mean"]) == list(inputs.mean)
