"""Nets without memory: the shapes of those with it, and nothing imported that takes seconds."""

import subprocess
import sys

import torch
import torchvision

from backbone.nets import build
from backbone.nets.meta import on_meta
from backbone.options import NetOptions
from detection.nets.detector import build as build_detector
from detection.options import DetectorOptions

WITHOUT_COMPILER = """
import sys
from backbone.nets import build
from backbone.nets.meta import on_meta
from backbone.options import NetOptions

with on_meta():
    for options in (NetOptions(depth=18), NetOptions(net="cifar_resnet", depth=8), NetOptions(net="vgg", depth=16)):
        build(options, 10)
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
"""


def test_nets_have_the_shapes_of_those_with_memory() -> None:
    for options in (NetOptions(depth=50), NetOptions(net="vgg", depth=16, norm="batch")):
        with on_meta():
            shaped = build(options, 7)
        real = build(options, 7)
        assert all(tensor.is_meta for tensor in shaped.state_dict().values())
        assert {k: (v.shape, v.dtype) for k, v in shaped.state_dict().items()} == {
            k: (v.shape, v.dtype) for k, v in real.state_dict().items()
        }


def test_a_detector_is_built_without_memory() -> None:
    with on_meta():
        detector = build_detector(DetectorOptions(norm="frozen", freeze_at=2), build(NetOptions(depth=18), 1000), 3)
    assert all(parameter.is_meta for parameter in detector.parameters())


def test_no_generator_is_touched_and_what_has_memory_is_filled_as_ever() -> None:
    torch.manual_seed(0)
    expected = torch.empty(4).normal_()
    torch.manual_seed(0)
    with on_meta():
        torchvision.models.resnet18()
        filled = torch.empty(4, device="cpu").normal_()
    assert torch.equal(filled, expected)


def test_the_compiler_is_not_imported() -> None:
    """torch draws on its meta device by Python decompositions, whose first use imports all of torch.compile."""
    answer = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
