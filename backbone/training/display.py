"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, TensorBoard files."""

import sys
import tempfile
import time
from typing import Any

from tqdm import tqdm

from backbone.storage import filesystem, is_local


class Display:
    """Shows the records of a run as they come (see `engine.Report`), on the driver."""

    def __init__(self, url: str, label: str = "") -> None:
        """`label` goes before every line, where several runs share an output; then no bar is drawn."""
        self.url = url
        self._label = f"[{label}] " if label else ""
        self._bar: tqdm | None = None
        self._writer: Any = None
        self._folder = filesystem(url)[1] + "/tensorboard" if is_local(url) else tempfile.mkdtemp(prefix="raybone-")
        self._began: tuple[float, int] | None = None

    def show(self, record: dict[str, Any]) -> None:
        """Take one record: a log, an evaluation, or something to say."""
        if record["kind"] == "say":
            self.say(record["text"])
            return
        self._to_tensorboard(record)
        if record["kind"] == "evaluation":
            metrics = {name.removeprefix("val_"): value for name, value in record.items() if name.startswith("val_")}
            facts = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "seconds")
            self.say(f"step {record['step']}/{record['total']}  validation: {facts}  ({metrics['seconds']:.1f} s)")
            return
        if self._began is None:
            self._began = (time.monotonic(), record["step"])
        facts = f"loss {record['loss']:.3f}"
        if "error" in record:
            facts += f"  error {record['error']:.1f} %"
        else:
            parts = {name: value for name, value in record.items() if name.startswith("loss_")}
            facts += " (" + ", ".join(f"{name[5:]} {value:.2f}" for name, value in parts.items()) + ")" if parts else ""
        facts += f"  {record['images_per_second']:.0f} img/s"
        if sys.stderr.isatty() and not self._label:
            if self._bar is None:
                self._bar = tqdm(total=record["total"], initial=record["step"], unit="step", dynamic_ncols=True)
            self._bar.n = record["step"]
            self._bar.set_postfix_str(f"{facts}  data {record['data_wait']:.0%}")
        else:
            began, first = self._began
            done = record["step"] - first
            left = (record["total"] - record["step"]) * (time.monotonic() - began) / done if done else None
            self.say(
                f"epoch {record['epoch']:.2f}  step {record['step']}/{record['total']}  {facts}  "
                f"lr {record['lr']:.4g}  data wait {record['data_wait']:.0%}"
                + (f"  eta {tqdm.format_interval(left)}" if left is not None else "")
            )

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        tqdm.write(self._label + text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Finish the bar and the TensorBoard files."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
            self._upload()

    def _to_tensorboard(self, record: dict[str, Any]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # What an interrupted attempt wrote past the checkpoint that was resumed is dropped.
            self._writer = SummaryWriter(self._folder, purge_step=record["step"])
        split = "train" if record["kind"] == "log" else "val"
        for name, value in record.items():
            if name not in ("kind", "step", "total"):
                self._writer.add_scalar(f"{split}/{name.removeprefix('val_')}", value, record["step"])
        if split == "val":
            self._writer.flush()
            self._upload()

    def _upload(self) -> None:
        if not is_local(self.url):
            fs, path = filesystem(self.url)
            fs.put(self._folder + "/", path + "/tensorboard/", recursive=True)
