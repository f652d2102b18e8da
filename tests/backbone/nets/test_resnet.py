"""The mathematics of residual, plain and pre-activation nets."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.nets import build
from backbone.nets.resnet import Unit
from backbone.options import NetOptions

Shake = Callable[[nn.Module], None]


def eval_net(**fields: Any) -> Any:
    torch.manual_seed(0)
    return build(NetOptions(**fields), 10).eval()


def image(options: NetOptions) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, *((32, 32) if options.net == "cifar_resnet" else (64, 64)))


def units(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, Unit)]


@pytest.mark.parametrize("scale", [1.0, 0.5, 1.1])
@pytest.mark.parametrize("preact", [False, True])
def test_without_residuals_a_net_is_lambda_to_the_number_of_units(scale: float, preact: bool) -> None:
    """With F = 0, x_L = λ^L x_0 (arXiv:1603.05027, eq. 7), picked and padded as option A says."""
    net = eval_net(
        net="cifar_resnet", depth=20, shortcut="A", shortcut_scale=scale, preact=preact, zero_init_residual=True
    )
    x = image(net.options)
    with torch.inference_mode():
        stem = F.relu(net.bn1(net.conv1(x)))
        maps = net(x)
        for name, stage_map in maps.items():
            steps, stride = 3 * (int(name[1]) - 1), net.stages[name].stride
            expected = torch.zeros_like(stage_map)
            expected[:, :16] = scale**steps * stem[:, :, ::stride, ::stride]
            if preact and name == "C4":
                expected = expected / (1 + 1e-5) ** 0.5  # the closing norm, as initialised
            torch.testing.assert_close(stage_map, expected)


@pytest.mark.parametrize(("width", "before", "behind"), [(1.0, (8, 16), (8, 16)), (3 / 16, (1, 3), (2, 3))])
def test_zeros_on_both_sides_of_the_channels(width: float, before: tuple, behind: tuple) -> None:
    """With F = 0, x_L = x_0 of fewer pixels, its channels in the middle; an odd one more of zeros behind them."""
    net = eval_net(net="cifar_resnet", depth=8, shortcut="A", shortcut_pad="both", width=width, zero_init_residual=True)
    x = image(net.options)
    with torch.inference_mode():
        stem, maps = F.relu(net.bn1(net.conv1(x))), net(x)
    for steps, name in enumerate(("C3", "C4"), 1):
        sides = (sum(before[:steps]), sum(behind[:steps]))
        expected = F.pad(stem[:, :, :: 2**steps, :: 2**steps], (0, 0, 0, 0, *sides))
        torch.testing.assert_close(maps[name], expected)


@pytest.mark.parametrize("kind", ["A", "B", "C"])
def test_lambda_scales_projections_too(kind: str) -> None:
    """ReLU keeps factors, so a zero-residual net of L units gives λ^L times what it gives with λ = 1."""
    scaled, plain = (eval_net(depth=18, shortcut=kind, shortcut_scale=s, zero_init_residual=True) for s in (0.5, 1))
    scaled.load_state_dict(plain.state_dict())
    x = image(plain.options)
    with torch.inference_mode():
        torch.testing.assert_close(scaled(x)["C5"], plain(x)["C5"] * 0.5**8)


def test_residual_scale_equals_scaling_the_last_norm(shake: Shake) -> None:
    scaled, folded = eval_net(depth=50, residual_scale=0.3), eval_net(depth=50)
    shake(folded)
    scaled.load_state_dict(folded.state_dict())
    with torch.no_grad():
        for unit in units(folded):
            unit.bn3.weight.mul_(0.3)
            unit.bn3.bias.mul_(0.3)
        x = image(folded.options)
        torch.testing.assert_close(scaled.classify(x), folded.classify(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("net", "depth"), [("cifar_resnet", 20), ("resnet", 18)])
def test_plain_and_residual_differ_by_the_addition_alone(net: str, depth: int, shake: Shake) -> None:
    """Same keys, same weights; each unit is relu(F(x)) in one and relu(F(x) + shortcut(x)) in the other."""
    plain, residual = (eval_net(net=net, depth=depth, shortcut=kind) for kind in ("none", "A"))
    shake(residual)
    plain.load_state_dict(residual.state_dict(), strict=True)
    assert len(units(plain)) == (depth - 2) // 2
    for a, b in zip(units(plain), units(residual), strict=True):
        x = torch.randn(2, a.conv1.in_channels, 8, 8).relu()
        with torch.inference_mode():
            branch = a.bn2(a.conv2(F.relu(a.bn1(a.conv1(x)))))
            shortcut = torch.zeros_like(branch)
            step = a.conv1.stride[0]
            shortcut[:, : x.shape[1]] = x[:, :, ::step, ::step]
            torch.testing.assert_close(a(x), F.relu(branch))
            torch.testing.assert_close(b(x), F.relu(branch + shortcut))


def bottleneck(x: Tensor, w: dict[str, Tensor], stride: int) -> Tensor:
    """Figure 5 right, with stride 2 where the authors' release has it: in branch2a and branch1."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1, padding: int = 0) -> Tensor:
        x = F.conv2d(x, w[f"{conv}.weight"], stride=stride, padding=padding)
        mean, var = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * w[f"{norm}.weight"][:, None, None] + w[f"{norm}.bias"][:, None, None]

    y = conv_norm(x, "conv1", "bn1", stride).clamp(min=0)
    y = conv_norm(y, "conv2", "bn2", padding=1).clamp(min=0)
    y = conv_norm(y, "conv3", "bn3")
    if "downsample.0.weight" in w:
        x = conv_norm(x, "downsample.0", "downsample.1", stride)
    return (y + x).clamp(min=0)


def test_stride_in_1x1_is_the_released_bottleneck(shake: Shake) -> None:
    net, other = eval_net(depth=50, stride_in_1x1=True), eval_net(depth=50)
    shake(net)
    other.load_state_dict(net.state_dict())
    x = image(net.options)
    with torch.inference_mode():
        maps, y = net(x), net.maxpool(F.relu(net.bn1(net.conv1(x))))
        for name in net.stages:
            for i, unit in enumerate(net.get_submodule(f"layer{int(name[1]) - 1}").children()):
                y = bottleneck(y, unit.state_dict(), 2 if i == 0 and name != "C2" else 1)
            torch.testing.assert_close(maps[name], y, rtol=1e-4, atol=1e-4)
        assert torch.equal(other(x)["C2"], maps["C2"])
        assert not torch.allclose(other(x)["C3"], maps["C3"], atol=1e-2)


@pytest.mark.parametrize("kind", ["A", "B", "C"])
@pytest.mark.parametrize("depth", [18, 50])
def test_preactivation_against_a_net_written_out(depth: int, kind: str, shake: Shake) -> None:
    """x + conv(relu(bn(...))), with the first activation of the net and projections' activation shared."""
    net = eval_net(depth=depth, shortcut=kind, preact=True)
    shake(net)
    x = image(net.options)
    with torch.inference_mode():
        maps, y = net(x), net.maxpool(F.relu(net.bn1(net.conv1(x))))
        for name in net.stages:
            for i, unit in enumerate(net.get_submodule(f"layer{int(name[1]) - 1}").children()):
                stride = 2 if i == 0 and name != "C2" else 1
                a = y if i == 0 and name == "C2" else F.relu(unit.bn1(y))
                branch = F.conv2d(a, unit.conv1.weight, stride=1 if depth == 50 else stride, padding=int(depth == 18))
                branch = F.conv2d(F.relu(unit.bn2(branch)), unit.conv2.weight, padding=1,
                                  stride=stride if depth == 50 else 1)  # fmt: skip
                if depth == 50:
                    branch = F.conv2d(F.relu(unit.bn3(branch)), unit.conv3.weight)
                if kind == "C" or (kind == "B" and branch.shape != y.shape):
                    shortcut = F.conv2d(a, unit.downsample[0].weight, stride=stride)
                else:
                    shortcut = torch.zeros_like(branch)
                    shortcut[:, : y.shape[1]] = y[:, :, ::stride, ::stride]
                y = branch + shortcut
            expected = F.relu(net.norm(y)) if name == "C5" else y
            torch.testing.assert_close(maps[name], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net.classify(x), net.fc(maps["C5"].mean((2, 3))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("depth", [18, 50])
def test_zero_initialised_units_begin_as_their_shortcut_and_learn(depth: int, preact: bool) -> None:
    net = eval_net(depth=depth, preact=preact, zero_init_residual=True)
    identities = [unit for unit in units(net) if unit.downsample is None]
    x = torch.rand(1, identities[0].conv1.in_channels, 8, 8)
    assert torch.equal(identities[0](x), x)
    net.train()
    F.cross_entropy(net.classify(image(net.options)), torch.tensor([1, 2])).backward()
    for unit in identities:
        last = (unit.conv3 or unit.conv2) if preact else (unit.bn3 or unit.bn2)
        assert last.weight.grad.any()


def test_stochastic_depth_rises_to_the_last_unit_and_leaves_images_their_shortcut() -> None:
    """In training each image has a unit's branch, scaled up, or its shortcut alone; in evaluation nothing is drawn."""
    options = NetOptions(net="cifar_resnet", depth=20, shortcut="A", stochastic_depth=0.4)
    net = build(options, 10)
    shares = [0.0 if unit.drop is None else unit.drop.p for unit in units(net)]
    assert shares == pytest.approx([0.4 * k / 8 for k in range(9)])
    plain = build(options.lasting, 10)
    plain.load_state_dict(net.state_dict())  # no parameters, no keys
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.eval().classify(images), plain.eval().classify(images))
    unit, maps = units(net)[-1], torch.randn(2000, 64, 2, 2).relu()
    branch = unit.bn2(unit.conv2(torch.relu(unit.bn1(unit.conv1(maps)))))
    unit.drop.train()
    torch.manual_seed(3)
    found = unit(maps)
    torch.manual_seed(3)
    assert torch.equal(unit(maps), found)  # drawn from torch's generator
    left_out = (found - maps).flatten(1).abs().amax(1) < 1e-6
    assert left_out.float().mean().item() == pytest.approx(0.4, abs=5 * 0.5 / 2000**0.5)
    torch.testing.assert_close(found[~left_out], (maps + branch / 0.6).relu()[~left_out])


def test_an_artifact_says_nothing_of_stochastic_depth() -> None:
    options = NetOptions(depth=18, stochastic_depth=0.1)
    assert options.recorded == NetOptions(depth=18).recorded
    assert NetOptions.model_validate(options.recorded) == options.lasting == NetOptions(depth=18)
