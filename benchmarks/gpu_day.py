"""What to do with a GPU, in order of what tells most. A part that fails does not end the day.

First whether each path works, then training beside the peers' loops, a detector's step and its evaluation, and
CIFAR-10's Table 6 for the time that is left. Each part is a script of this folder, bounded in time, and writes its own
JSON into `--folder` as it ends; `gpu_day.json` says how each ended. Needs raybone's requirements without Ray, and torch
2.11 or later. Where nothing can be downloaded, carry wheels: what is missing is named at the start.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
NEEDED = {  # module: what to carry
    "pydantic": "pydantic pydantic-core annotated-types typing-inspection",
    "simplejpeg": "simplejpeg",
    "pycocotools": "pycocotools",
    "faster_coco_eval": "faster-coco-eval",
    "albumentations": "albumentations==2.0.8 albucore==0.0.24 stringzilla simsimd",
    "tyro": "tyro docstring-parser typeguard",
    "tensorboardX": "tensorboardX protobuf packaging",
    **{
        name: name
        for name in ("torch", "torchvision", "scipy", "tqdm", "safetensors", "fsspec", "pyarrow", "matplotlib")
    },
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
}
PARTS = ("paths", "training", "detector", "evaluation", "cifar")


def command(part: str, given: argparse.Namespace, minutes: float) -> list[str]:
    """What runs a part."""
    images, cuda = str(given.images), ["--device", "cuda"]
    words = {
        "paths": ["gpu_paths.py", "--images", images],
        "training": ["gpu_training.py", "--images", images, "--minutes", f"{0.8 * minutes:.1f}", "--turns", "3"],
        "detector": ["detection_step.py", *cuda, "--side", "800", "--batch", "8", "--workers", "8"],
        "evaluation": ["detection_inference.py", *cuda, "--side", "800", "--images", "64"],
        "cifar": ["cifar_table6.py", "--data", str(given.cifar), "--folder", f"{given.folder}/table6"],
    }[part]
    more = {
        "detector": ["--threads", "4", "--steps", "10", "--turns", "3", "--images", "200"],
        "cifar": ["--minutes", f"{minutes - 0.7:.1f}"],
    }
    script, *rest = words
    output = given.folder / f"{Path(script).stem}.json"
    return [sys.executable, str(HERE / script), *rest, *more.get(part, []), "--output", str(output)]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--images", type=Path, required=True, help="an ImageFolder of photographs; 200 do")
    words.add_argument("--cifar", type=Path, help="folder of train-*.parquet and test-*.parquet; without it, no cifar")
    words.add_argument("--folder", type=Path, default=HERE.parent / "docs" / "results", help="where the JSON goes")
    words.add_argument("--minutes", type=float, default=60, help="in all; the last part gets what is left")
    words.add_argument("--at-most", type=float, nargs=4, default=(6, 9, 6, 6), help="minutes of the first four parts")
    words.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = words.parse_args()
    missing = [wheels for name, wheels in NEEDED.items() if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(f"error: missing here; carry wheels and run: pip install --no-deps {' '.join(missing)}")
    given.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    rows = []
    for part in given.parts:
        if part == "cifar" and not given.cifar:
            continue
        left = (end - time.monotonic()) / 60
        minutes = left if part == "cifar" else min(left, dict(zip(PARTS, given.at_most, strict=False))[part])
        words_of = command(part, given, minutes)
        print(f"== {part}, at most {minutes:.1f} minutes: {' '.join(words_of[1:])}", flush=True)
        began = time.monotonic()
        try:
            code = subprocess.run(words_of, timeout=max(60 * minutes, 1)).returncode
            how = "ended" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            how = "was out of time"
        rows.append({"part": part, "how": how, "seconds": round(time.monotonic() - began)})
        print(f"== {part} {how} after {rows[-1]['seconds']} s", flush=True)
        (given.folder / "gpu_day.json").write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(any(row["how"] != "ended" for row in rows))


if __name__ == "__main__":
    main()
