"""What of a backbone stays as it is while a detector is trained: norms and first parts."""

from typing import Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import FrozenBatchNorm2d

from backbone.errors import UserError
from backbone.nets import Backbone
from backbone.nets.external import External
from backbone.nets.norm import GroupedBatchNorm2d
from detection.nets.folding import fold

NORMS = (_BatchNorm, FrozenBatchNorm2d, nn.GroupNorm, nn.LayerNorm)

# By the backbone's model.norm: what norm may be, and what to do where it is something else.
ALLOWED = {
    "batch": (("frozen", "trainable", "sync"), "for group, pretrain the backbone with model.norm group"),
    "sync": (("frozen", "trainable", "sync"), "for group, pretrain the backbone with model.norm group"),
    "frozen": (("frozen",), "for another one, pretrain the backbone with model.norm batch"),
    "group": (("group",), "its group norm has no statistics to fix or share; to keep it fixed, raise freeze_at"),
    "layer": (("frozen", "trainable", "group"), "its layer norm has no statistics, and trains or does not"),
    "none": (("frozen", "trainable"), "it has no norms at all, so that both mean the same"),
}


class Policy(Protocol):
    """What of a recipe's section says it: see `DetectorOptions`."""

    @property
    def norm(self) -> str: ...

    @property
    def freeze_at(self) -> int: ...


def check(options: Policy, net: Backbone, section: str = "detector") -> None:
    """Refuse what the backbone cannot do; `section` is where the recipe says it.

    Raises:
        UserError: `norm` does not fit the backbone's, or `freeze_at` counts more parts than it has.
    """
    allowed, fix = ALLOWED[net.options.norm]
    if options.norm not in allowed:
        fix = "nets of other libraries keep their norms" if isinstance(net, External) else fix
        raise UserError(
            f"{section}.norm {options.norm}: {net.options.name} with model.norm {net.options.norm} takes "
            f"{' or '.join(allowed)}; {fix}"
        )
    parts = list(net.parts())
    if options.freeze_at > len(parts):
        raise UserError(
            f"{section}.freeze_at {options.freeze_at}: {net.options.name} has {len(parts)} parts "
            f"({', '.join(parts)}); give {len(parts)} or less"
        )


def apply(options: Policy, net: Backbone) -> None:
    """Exchange the norms of `net` and fix its first parts, in place; keys stay, less the counters of frozen norms.

    In fixed parts batch norms are always frozen: training must not move their statistics either. Nothing is dropped at
    random there: what is fixed gives the same maps in training. Under autocast frozen norms are folded (`folding`).
    """
    fixed = [module for part in list(net.parts().values())[: options.freeze_at] for module in part]
    inside = {id(m) for module in fixed for m in module.modules()}
    for name, module in list(net.named_modules()):
        if isinstance(module, _BatchNorm):
            net.set_submodule(name, _exchange(module, "frozen" if id(module) in inside else options.norm))
        elif isinstance(module, nn.LayerNorm) and options.norm == "frozen":
            module.requires_grad_(False)
        elif id(module) in inside and isinstance(module, _DropoutNd):
            module.p = 0.0
        elif id(module) in inside and hasattr(module, "drop_prob"):  # timm's stochastic depth
            module.drop_prob = 0.0
    for module in fixed:
        module.requires_grad_(False)
    fold(net)


def count_norms(net: nn.Module) -> tuple[int, int]:
    """How many norms are (fixed, trained)."""
    norms = [m for m in net.modules() if isinstance(m, NORMS)]
    trained = sum(any(p.requires_grad for p in m.parameters()) for m in norms)
    return len(norms) - trained, trained


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """In place of timm's batch norms that end with an activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def _exchange(norm: _BatchNorm, policy: str) -> nn.Module:
    acts = hasattr(norm, "act")
    if policy == "sync" and acts:
        from timm.layers import convert_sync_batchnorm  # torch's would lose the activation

        return convert_sync_batchnorm(norm)
    if policy == "sync":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    if policy == "frozen":
        new: nn.Module = (FrozenBatchNormAct2d if acts else FrozenBatchNorm2d)(norm.num_features, norm.eps)
    elif isinstance(norm, GroupedBatchNorm2d):
        # bn_group divides the device batch of pretraining; as in a backbone artifact, plain batch norm is what stays.
        new = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    else:
        return norm
    new.to(norm.weight).load_state_dict(norm.state_dict())
    if acts:
        new.drop, new.act = norm.drop, norm.act
    return new.train(norm.training)
