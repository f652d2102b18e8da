"""What of a backbone is fixed, counted by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from backbone.errors import UserError
from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection.nets import Detector, build, summary
from detection.options import DetectorOptions, Roi

R18, R50 = {"depth": 18}, {"depth": 50}
PLAIN34 = {"depth": 34, "shortcut": "none"}
VGG, VGG_BN = {"net": "vgg", "depth": 16, "norm": "none"}, {"net": "vgg", "depth": 16}
PARTS = ("stem", "C2", "C3", "C4", "C5")


def basic(inputs: int, channels: int, units: int, projection: bool) -> int:
    weights = 9 * inputs * channels + (2 * units - 1) * 9 * channels**2
    return weights + (inputs * channels if projection else 0)


def bottleneck(inputs: int, channels: int, units: int) -> int:
    first = inputs * channels + 9 * channels**2 + 4 * channels**2 + 4 * inputs * channels
    return first + (units - 1) * (4 * channels**2 + 9 * channels**2 + 4 * channels**2)


# Of each part: norms, their channels in all, and weights and biases of its convolutions.
TABLE: list[tuple[dict[str, Any], list[tuple[int, int, int]]]] = [
    (
        R18,
        [
            (1, 64, 147 * 64),
            (4, 4 * 64, basic(64, 64, 2, False)),
            (5, 5 * 128, basic(64, 128, 2, True)),
            (5, 5 * 256, basic(128, 256, 2, True)),
            (5, 5 * 512, basic(256, 512, 2, True)),
        ],
    ),
    (
        PLAIN34,
        [
            (1, 64, 147 * 64),
            (6, 6 * 64, basic(64, 64, 3, False)),
            (8, 8 * 128, basic(64, 128, 4, False)),
            (12, 12 * 256, basic(128, 256, 6, False)),
            (6, 6 * 512, basic(256, 512, 3, False)),
        ],
    ),
    (
        R50,
        [
            (1, 64, 147 * 64),
            (10, 3 * 6 * 64 + 256, bottleneck(64, 64, 3)),
            (13, 4 * 6 * 128 + 512, bottleneck(256, 128, 4)),
            (19, 6 * 6 * 256 + 1024, bottleneck(512, 256, 6)),
            (10, 3 * 6 * 512 + 2048, bottleneck(1024, 512, 3)),
        ],
    ),
    (VGG, [(0, 0, n) for n in (260_160, 1_475_328, 5_899_776, 7_079_424, 0)]),
    (
        VGG_BN,
        [
            (4, 384, 260_160),
            (3, 768, 1_475_328),
            (3, 1536, 5_899_776),
            (3, 1536, 7_079_424),
            (0, 0, 0),
        ],
    ),
]
POLICIES = {"batch": ("frozen", "trainable", "sync"), "group": ("group",), "none": ("frozen", "trainable")}
CASES = [
    (net | ({"norm": "group"} if norm == "group" else {}), table, policy)
    for net, table in TABLE
    for norm, policies in POLICIES.items()
    if norm == net.get("norm", "batch") or (norm == "group" and "norm" not in net)
    for policy in policies
]


def head_parameters(kind: str, net: dict[str, Any], classes: int) -> int:
    """Of everything but the stages: what torchvision's parts with our defaults have."""
    wide = net.get("depth") == 50
    stages = [256, 512, 512, 512] if "net" in net else [c * (4 if wide else 1) for c in (64, 128, 256, 512)]
    if kind == "fpn":
        pyramid = sum(c * 256 + 256 for c in stages) + 4 * (9 * 256 * 256 + 256)
        rpn = 9 * 256 * 256 + 256 + (256 + 1) * 3 * 5
        return pyramid + rpn + (12544 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * classes * 5
    features = 4096 if "net" in net else stages[3]
    fc = (512 * 49 + 1) * 4096 + (4096 + 1) * 4096 if "net" in net else 0
    return 9 * stages[2] ** 2 + stages[2] + (stages[2] + 1) * 15 * 5 + fc + (features + 1) * classes * 5


@pytest.mark.parametrize("kind", ["fpn", "c4"])
@pytest.mark.parametrize(
    ("net", "table", "policy"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
    if isinstance(v, dict) else ""
)  # fmt: skip
def test_the_summary_counts_what_is_fixed(
    net: dict[str, Any], table: list[tuple[int, int, int]], policy: Any, kind: Any
) -> None:
    for k in range(6):
        with torch.device("meta"):
            options = DetectorOptions(norm=policy, freeze_at=k, kind=kind)
            detector = build(options, build_net(NetOptions(**net), 10), 20)
        norms = sum(n for n, _, _ in table)
        frozen = norms if policy == "frozen" else sum(n for n, _, _ in table[:k])
        # Frozen batch norms keep gamma and beta as buffers; fixed group norms keep them as parameters.
        affine = [0 if policy == "frozen" else 2 * c for _, c, _ in table]
        heads = head_parameters(kind, net, 21)
        trains = heads + sum(weights + a for (_, _, weights), a in zip(table[k:], affine[k:], strict=True))
        total = trains + sum(weights for _, _, weights in table[:k]) + (sum(affine[:k]) if policy == "group" else 0)
        which = f" ({', '.join(PARTS[:k])})" if k else ""
        assert summary(detector) == (
            f"{frozen} norms frozen, {norms - frozen} trained; {k} of 5 parts fixed{which}; "
            f"{trains:,} of {total:,} parameters train"
        )


@pytest.mark.parametrize(
    ("net", "policy", "kinds"),
    [
        (R18, "frozen", {FrozenBatchNorm2d: 20}),
        (R18, "trainable", {FrozenBatchNorm2d: 5, nn.BatchNorm2d: 15}),
        (R18, "sync", {FrozenBatchNorm2d: 5, nn.SyncBatchNorm: 15}),
        ({**R18, "bn_group": 2}, "frozen", {FrozenBatchNorm2d: 20}),
        ({**R18, "bn_group": 2}, "trainable", {FrozenBatchNorm2d: 5, nn.BatchNorm2d: 15}),
        ({**R18, "bn_group": 2}, "sync", {FrozenBatchNorm2d: 5, nn.SyncBatchNorm: 15}),
        ({**R18, "norm": "sync"}, "frozen", {FrozenBatchNorm2d: 20}),
        ({**R18, "norm": "frozen"}, "frozen", {FrozenBatchNorm2d: 20}),
        ({**R18, "norm": "group"}, "group", {nn.GroupNorm: 20}),
        ({**R18, "preact": True}, "trainable", {FrozenBatchNorm2d: 4, nn.BatchNorm2d: 13}),
    ],
)
def test_norms_are_exchanged(
    net: dict[str, Any], policy: str, kinds: dict[type, int], detector: Callable[..., Detector]
) -> None:
    found: dict[type, int] = {}
    for module in detector(net, norm=policy, freeze_at=2).modules():
        if isinstance(module, (_BatchNorm, FrozenBatchNorm2d, nn.GroupNorm)):
            kind = FrozenBatchNorm2d if isinstance(module, FrozenBatchNorm2d) else type(module)
            found[kind] = found.get(kind, 0) + 1
    assert found == kinds


def test_frozen_norms_keep_their_eps_and_the_given_net_its_norms(shake: Callable[[nn.Module], None]) -> None:
    net = build_net(NetOptions(depth=18, width=0.1), 10)
    shake(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.5
    before = {key: value.clone() for key, value in net.state_dict().items()}
    body = build(DetectorOptions(norm="frozen", freeze_at=5), net, 3).backbone.body
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for name, stage_map in net.eval()(x).items():
            torch.testing.assert_close(body(x)[name], stage_map, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("kind", ["fpn", "c4"])
@pytest.mark.parametrize("policy", ["frozen", "trainable", "sync"])
def test_fixed_parts_do_not_move_in_training(
    kind: str, policy: str, detector: Callable[..., Detector], batch: tuple[Tensor, Tensor, Any]
) -> None:
    made = detector(R18, kind=kind, norm=policy, freeze_at=2, masks=True)
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], 0.01, weight_decay=0.1)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    for _ in range(2):
        losses = made.eval().train()(*batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    moved = {key for key, value in made.state_dict().items() if not torch.equal(before[key], value)}
    body = {key: key.removeprefix("backbone.body.") for key in before if key.startswith("backbone.body.")}
    fixed = {key for key, own in body.items() if own.startswith(("conv1", "bn1", "layer1"))}
    if policy == "frozen":
        fixed |= {key for key in before if "bn" in key or "downsample.1" in key}
    assert moved == before.keys() - fixed


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (R18, {"norm": "group"}, r"detector.norm group: resnet18 .* pretrain the backbone with model.norm group"),
    ({**R18, "norm": "group"}, {"norm": "frozen"}, r"detector.norm frozen: .*model.norm group takes group"),
    ({**R18, "norm": "group"}, {"norm": "sync"}, r"takes group"),
    ({**R18, "norm": "frozen"}, {"norm": "trainable"}, r"takes frozen"),
    (VGG, {"norm": "sync"}, r"detector.norm sync: vgg16 .* takes frozen or trainable"),
    (VGG, {"norm": "group"}, r"takes frozen or trainable"),
    ({"net": "cifar_resnet", "depth": 8}, {"freeze_at": 5}, r"freeze_at 5: cifar_resnet8 has 4 parts"),
    ({"net": "cifar_resnet", "depth": 8}, {"kind": "c4"}, r"cifar_resnet8 has no C5 .*; use kind fpn"),
    ({"net": "cifar_resnet", "depth": 8}, {}, r"anchor_sizes has 5 sizes; .* needs 4"),
    (R18, {"anchor_sizes": (32, 64)}, r"anchor_sizes has 2 sizes; .* needs 5"),
    (VGG, {"kind": "c4", "roi": Roi(size=14)}, r"roi.size 14: fc6 of vgg16 reads 7x7 cells; give 7"),
    (VGG, {"kind": "c4", "masks": True}, r"detector.masks: .*use kind fpn"),
]


@pytest.mark.parametrize(("net", "fields", "message"), BAD)
def test_what_does_not_fit_the_net_is_refused(net: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build(DetectorOptions(**{"norm": "frozen", "freeze_at": 0, **fields}), build_net(NetOptions(**net), 10), 3)
