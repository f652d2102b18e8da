"""Make a backbone artifact of another framework's weights, every key accounted for:

python jobs/import.py --source torchvision --weights resnet50-0676ba61.pth --output runs/torchvision-resnet50/artifact
python jobs/import.py --source detectron2 --weights R-50.pkl --output runs/r50/artifact \
    --stride_in_1x1 true --channel_order BGR --mean 0.485 0.456 0.406 --std 0.00392157 0.00392157 0.00392157
python jobs/import.py --source timm --model resnext50_32x4d --weights downloads/resnext50 --output runs/resnext/artifact
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from backbone.interop.options import Import
from backbone.next_steps import after_backbone


def main() -> None:
    options, _ = parse(Import, sys.argv[1:], doc=__doc__)
    from backbone.interop import importing, probe  # from here on torch is imported, which takes seconds

    done = importing.run(options)
    net, inputs = done.found.net, done.found.inputs
    print(f"net       {net.options.called}, {net.num_classes} classes, {net.options.told}")
    print(f"stages    {', '.join(f'{name} {s.channels} at stride {s.stride}' for name, s in net.stages.items())}")
    print(f"input     {inputs.channel_order}, mean {inputs.mean}, std {inputs.std} on the 0..1 scale, red green blue")
    print("".join(f"note      {note}\n" for note in done.notes), end="")
    if done.agreements:
        print(probe.table(list(done.agreements)))
    print(f"artifact  {options.output}")
    print(after_backbone(options.output))


if __name__ == "__main__":
    run_main(main)
