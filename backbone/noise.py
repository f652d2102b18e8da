"""How closely a net computes in fp32, told by the same net in fp64."""

import copy

import torch
from torch import Tensor

from backbone.inputs import InputConvention
from backbone.nets import Backbone

# Sums in another order err by as much as ours, in directions of their own, and by some times as much where norms were
# folded into convolutions: 1.4 times our noise was seen with frameworks, 3 times with folded norms.
NOISE_FACTOR = 10


@torch.no_grad()
def noise(net: Backbone, inputs: InputConvention, images: Tensor) -> dict[str, float]:
    """The largest error of each stage's map and of the logits in fp32, absolute.

    Of `images`, uint8 RGB [N, 3, H, W], in eval mode, on CPU. fp64 stands for the truth; its own error is 1e-9 of that.
    The net's mode and device are put back.
    """
    device, was_training = next(net.parameters()).device, net.training
    net.to("cpu").eval()
    x = inputs.normalize(images)
    rough = {**net(x), "logits": net.classify(x)}
    twin, x = copy.deepcopy(net).double(), x.double()
    exact = {**twin(x), "logits": twin.classify(x)}
    net.to(device).train(was_training)
    return {name: (rough[name].double() - value).abs().max().item() for name, value in exact.items()}
