"""What every net promises, whatever its options."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backbone.nets import Stage, build
from backbone.nets.contract import run
from backbone.options import NetOptions

# A quarter of the channels: what is tested does not depend on them.
ALL = [
    *(
        NetOptions(net=net, depth=depth, shortcut=kind, preact=preact, width=width)
        for net, depth, width in (("resnet", 18, 0.25), ("resnet", 50, 0.25), ("cifar_resnet", 20, 1))
        for kind in ("A", "B", "C")
        for preact in (False, True)
    ),
    NetOptions(depth=34, shortcut="none", width=0.25),
    NetOptions(depth=50, shortcut="none", width=0.25),
    NetOptions(net="cifar_resnet", depth=8, shortcut="none"),
    NetOptions(depth=50, stride_in_1x1=True, width=0.25),
    NetOptions(depth=50, stride_in_1x1=True, width=0.3, preact=True),
    NetOptions(depth=18, shortcut_scale=0.5, residual_scale=0.5, width=0.25),
    NetOptions(depth=18, norm="group", width=0.25),
    NetOptions(depth=18, bn_group=2, width=0.25),
    NetOptions(net="vgg", depth=11, norm="none", width=0.25),
    NetOptions(net="vgg", depth=16, width=0.25),
]
SHORT = [ALL[0], ALL[5], ALL[8], ALL[13], *ALL[-4:]]


def label(options: NetOptions) -> str:
    fields = options.model_dump(exclude_defaults=True, exclude={"net", "depth", "width"})
    return "-".join([options.name, *(f"{key}={value}" for key, value in fields.items())])


def example(options: NetOptions) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    size = 32 if options.net == "cifar_resnet" else 64
    return build(options, 10), torch.randn(2, 3, size, size)


@pytest.mark.parametrize("options", ALL, ids=label)
def test_maps_have_the_channels_and_strides_of_their_stages(options: NetOptions) -> None:
    net, x = example(options)
    with torch.inference_mode():
        maps, logits = net.eval()(x), net.classify(x)
    size = x.shape[-1]
    assert list(maps) == list(net.stages)
    for name, stage in net.stages.items():
        assert maps[name].shape == (2, stage.channels, size // stage.stride, size // stage.stride)
    strides = [1, 2, 4] if options.net == "cifar_resnet" else [4, 8, 16, 32]
    assert [stage.stride for stage in net.stages.values()] == strides
    assert logits.shape == (2, 10)
    assert (net.num_classes, net.options) == (10, options)


@pytest.mark.parametrize(
    ("fields", "channels"),
    [
        ({"depth": 34}, [64, 128, 256, 512]),
        ({"depth": 34, "shortcut": "none"}, [64, 128, 256, 512]),
        ({"depth": 101}, [256, 512, 1024, 2048]),
        ({"net": "cifar_resnet", "depth": 110}, [16, 32, 64]),
        ({"net": "vgg", "depth": 19}, [256, 512, 512, 512]),
    ],
)
def test_stages_are_the_papers(fields: dict[str, Any], channels: list[int]) -> None:
    with torch.device("meta"):
        net = build(NetOptions(**fields), 10)
    strides = [1, 2, 4] if "net" in fields and fields["net"] == "cifar_resnet" else [4, 8, 16, 32]
    expected = zip(["C2", "C3", "C4", "C5"], channels, strides, strict=False)
    assert net.stages == {name: Stage(c, s) for name, c, s in expected}


@pytest.mark.parametrize("size", [(65, 97), (33, 40)])
def test_odd_sizes_round_up_in_resnets_and_down_in_vgg(size: tuple[int, int]) -> None:
    resnet, vgg = NetOptions(depth=18, width=0.1), NetOptions(net="vgg", depth=11, width=0.1)
    for options, rounding in ((resnet, -1), (vgg, 1)):
        model = build(options, 10).eval()
        with torch.inference_mode():
            maps = model(torch.randn(1, 3, *size))
        for name, stage in model.stages.items():
            assert maps[name].shape[2:] == tuple(rounding * (rounding * s // stage.stride) for s in size)


@pytest.mark.parametrize("options", ALL, ids=label)
def test_gradients_reach_every_parameter(options: NetOptions) -> None:
    net, x = example(options)
    # In training, VGG's biases vanish in the norms and dropout cuts: VGG is tested in evaluation.
    net.train(options.net != "vgg")
    F.cross_entropy(net.classify(x), torch.tensor([3, 7])).backward()
    for key, p in net.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        assert p.grad.any(), key


@pytest.mark.parametrize("options", SHORT, ids=label)
def test_channels_last_gives_the_same_maps(options: NetOptions) -> None:
    net, x = example(options)
    with torch.inference_mode():
        expected = net.eval()(x)
        last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for name, stage_map in expected.items():
        torch.testing.assert_close(last[name], stage_map, rtol=1e-4, atol=1e-4 * stage_map.abs().max().item())
        assert last[name].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", SHORT, ids=label)
def test_nothing_writes_into_a_map_that_was_handed_out(options: NetOptions) -> None:
    net, x = example(options)
    with torch.no_grad():
        maps = net.eval()(x)
        # Running a stage again on the map before it, as handed out, must give the next map.
        names = list(maps)
        if options.net == "vgg":
            pools = [i for i, layer in enumerate(net.features) if isinstance(layer, torch.nn.MaxPool2d)]
            for name, end in zip(names, [*pools[2:], pools[4] + 1], strict=True):
                assert torch.equal(maps[name], net.features[:end](x))
        else:
            for i in range(1, len(names) - options.preact):
                rerun = net.get_submodule(f"layer{i + 1}")(maps[names[i - 1]])
                assert torch.equal(maps[names[i]], rerun)


@pytest.mark.parametrize("options", ALL, ids=label)
def test_parts_run_one_after_the_other_are_the_net(options: NetOptions) -> None:
    net, x = example(options)
    net.eval()
    parts = net.parts()
    assert list(parts) == ["stem", *net.stages]
    with torch.no_grad():
        maps, here = net(x), x
        for name, modules in parts.items():
            here = run(modules, here.clone())  # a clone, since no part may write into what another handed out
            assert name == "stem" or torch.equal(here, maps[name])
        assert list(net(x, through="C3")) == ["C2", "C3"]
        assert torch.equal(net(x, through="C3")["C3"], maps["C3"])
    # Every weight is in exactly one part, save those of the head.
    inside = [id(p) for modules in parts.values() for m in modules for p in m.parameters()]
    assert len(inside) == len(set(inside))
    outside = {key.split(".")[0] for key, p in net.named_parameters() if id(p) not in inside}
    assert outside == {"classifier" if options.net == "vgg" else "fc"}


@pytest.mark.parametrize(("net", "width"), [("resnet", 0.25), ("vgg", 0.05)])
def test_the_region_head_is_what_follows_c4_in_classify(net: Any, width: float) -> None:
    torch.manual_seed(0)
    model = build(NetOptions(net=net, depth=18 if net == "resnet" else 11, width=width), 10).eval()
    head = model.region_layers()
    with torch.no_grad():
        x = torch.randn(1, 3, 224, 224)
        maps = model(x)
        # VGG reads 7x7 cells of a region in place of pool 5's map.
        vector = run(head.to_vector, run(head.to_map, maps["C4"]) if head.to_map else maps["C5"])
        logits = (model.fc if net == "resnet" else model.classifier[6])(vector)
        torch.testing.assert_close(logits, model.classify(x))
    assert vector.shape == (1, head.features)
    assert head.size == (7 if net == "vgg" else None)


def test_vgg_parts_open_with_their_pools() -> None:
    parts = build(NetOptions(net="vgg", depth=16, norm="none", width=0.05), 10).parts()
    kinds = {name: "".join(type(m).__name__[0] for m in modules) for name, modules in parts.items()}
    assert kinds == {"stem": "CRCRMCRCR", "C2": "MCRCRCR", "C3": "MCRCRCR", "C4": "MCRCRCR", "C5": "M"}
