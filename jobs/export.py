"""Write an artifact as another framework loads it, and prove that it computes the same there:

python jobs/export.py --artifact runs/my-resnet50/artifact --to timm --output exported/timm
python jobs/export.py --artifact runs/my-resnet50/artifact --to detectron2 --output exported/detectron2
python jobs/export.py --artifact runs/my-detector/artifact --to onnx --output exported/detector
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from backbone.interop.options import Export


def main() -> None:
    options, _ = parse(Export, sys.argv[1:], doc=__doc__)
    from backbone.interop import export, probe  # from here on torch is imported, which takes seconds
    from detection.interop import export as detectors

    words = options.artifact, options.to, options.output, options.license
    if detectors.is_detector(options.artifact):
        done = detectors.export(*words)
        print("".join(f"checked   {agreement}\n" for agreement in done.agreements), end="")
    else:
        done = export.export(*words)
        print(probe.table(list(done.agreements)))
    print("".join(f"note      {note}\n" for note in done.notes), end="")
    print(f"written   {options.output}: {', '.join(done.files)}")
    print(f"\n{done.snippet}")


if __name__ == "__main__":
    run_main(main)
