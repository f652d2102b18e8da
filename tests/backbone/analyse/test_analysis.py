"""Gradients against the closed form of the identity path and against finite differences; responses by hand."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from backbone import artifact
from backbone.analyse.analysis import analyse
from backbone.analyse.figures import _label, _title, draw_gradients, draw_responses, draw_scaling
from backbone.analyse.measures import gradient_norms, layer_responses, shortcut_factors, shortcut_path, units
from backbone.analyse.options import Analysis
from backbone.data.synthetic import CLASSES
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.nets import build
from backbone.options import NetOptions
from tests.backbone.test_artifact import trained

TINY = NetOptions(net="cifar_resnet", depth=8, shortcut="A", width=0.25)


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.0, 1.1])
def test_shortcuts_alone_give_the_product_of_their_scales(scale: float) -> None:
    """arXiv:1603.05027, equation 8: through 110 layers λ = 0.5 leaves 1e-16 of the gradient and 1.1 makes 156 of it."""
    options = TINY.model_copy(update={"depth": 110, "shortcut_scale": scale})
    found = shortcut_path(options, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert found == pytest.approx([math.prod([scale] * k) for k in range(53, -1, -1)], rel=1e-9)
    assert shortcut_factors(scale, 54) == pytest.approx(found, rel=1e-9)
    assert (found[0] < 1e-2, found[0] > 100) == (scale < 1, scale > 1)


def test_gradients_are_those_of_finite_differences() -> None:
    """Of the loss by one unit's output along its own gradient: the derivative is the gradient's norm."""
    torch.manual_seed(0)
    net = build(TINY, 4).double()
    images, labels = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.arange(6) % 4
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rows = gradient_norms(net, images, labels)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "the net is untouched"
    assert [row["unit"] for row in rows] == list(units(net)) == ["layer1.0", "layer2.0", "layer3.0"]

    unit, noise = net.train().get_submodule("layer2.0"), torch.tensor(0.0)

    def loss(at: torch.Tensor) -> torch.Tensor:
        hook = unit.register_forward_hook(lambda module, inputs, output: output + at)
        try:
            return F.cross_entropy(net.classify(images), labels, reduction="sum")
        finally:
            hook.remove()

    noise = torch.zeros(6, 8, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(noise), noise)
    step = 1e-5 * gradient / gradient.norm()
    with torch.no_grad():
        slope = (loss(step) - loss(-step)).item() / 2e-5
    assert rows[1]["output"] == pytest.approx(slope / math.sqrt(6), rel=1e-5)
    mean = F.cross_entropy(net.classify(images), labels)
    weights = torch.autograd.grad(mean, [unit.conv1.weight, unit.conv2.weight])
    assert rows[1]["weights"] == pytest.approx(math.hypot(*(w.norm().item() for w in weights)), rel=1e-6)


@torch.no_grad()
def test_responses_are_taken_after_bn_and_before_relu_or_addition() -> None:
    net = trained(TINY).eval()
    batches = [torch.randn(3, 3, 32, 32), torch.randn(2, 3, 32, 32)]
    rows = layer_responses(net, batches)
    assert [row["layer"] for row in rows] == [
        "conv1",
        *(f"layer{stage}.0.conv{i}" for stage in (1, 2, 3) for i in (1, 2)),
    ]
    x = torch.cat(batches)
    stem = net.get_submodule("bn1")(net.get_submodule("conv1")(x))
    unit = net.get_submodule("layer1.0")
    first = unit.bn1(unit.conv1(stem.relu()))
    second = unit.bn2(unit.conv2(first.relu()))
    expected = [value.double().std(correction=0).item() for value in (stem, first, second)]
    assert [row["std"] for row in rows[:3]] == pytest.approx(expected, rel=1e-5)


def test_bottlenecks_have_one_3x3_layer_a_unit() -> None:
    net = build(NetOptions(depth=50, width=0.125), 4)
    rows = layer_responses(net, [torch.randn(1, 3, 64, 64)])
    assert len(rows) == 16
    assert {row["layer"].rpartition(".")[2] for row in rows} == {"conv2"}


def test_what_has_no_such_thing_is_refused() -> None:
    with pytest.raises(UserError, match="vgg11 has no units"):
        units(build(NetOptions(net="vgg", depth=11, norm="none", width=0.05), 4))
    with pytest.raises(UserError, match="BN comes before the layer"):
        layer_responses(build(TINY.model_copy(update={"preact": True}), 4), [])


def test_figures_are_pictures() -> None:
    torch.manual_seed(0)
    net, images = build(TINY, 4), torch.randn(4, 3, 16, 16)
    about = {"name": "tiny", "kind": "plain", "depth": 8, "state": "at initialisation"}
    rows = gradient_norms(net, images, torch.arange(4))
    gradients = draw_gradients([{**about, "units": rows}, {**about, "state": "trained", "units": rows}])
    responses = draw_responses([{**about, "layers": layer_responses(net, [images])}])
    closed = {"scale": 0.9, "units": rows, "measured": [0.81, 0.9, 1], "closed_form": [0.81, 0.9, 1]}
    for png in (gradients, responses, draw_scaling([closed], "tiny")):
        assert png.startswith(b"\x89PNG")
        assert len(png) > 5000


@pytest.mark.parametrize(
    ("second", "title", "label"),
    [
        ("1,300 steps of 64", "after 1,300 steps of 64", "a"),
        ("20 steps of 64", "trained", "a, 1,300 steps of 64"),
        ("", "trained", "a, 1,300 steps of 64"),
    ],
)
def test_figures_say_how_long_nets_were_trained(second: str, title: str, label: str) -> None:
    rows = [{"name": "a", "trained": "1,300 steps of 64"}, {"name": "b", "trained": second}]
    assert _title(rows) == title
    assert _label(rows[0], rows) == label


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    urls = []
    for size in (32, 64):
        artifact.save(tmp_path / str(size), build(TINY, 12), InputConvention(size=size), CLASSES, {})
        urls.append(str(tmp_path / str(size)))
    with pytest.raises(UserError, match="images of different sizes cannot share a figure"):
        analyse(Analysis(backbone=tuple(urls), output=str(tmp_path / "out")))
