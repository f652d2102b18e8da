"""The training loop: plain PyTorch, no Ray, any task. Read `train` first.

What is trained comes as a `Task`; where and with whom as a `World`; what a resume needs lives in a `Store`.
"""

import copy
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbone.compute import Compute
from backbone.data.stream import MicroBatches, mix
from backbone.errors import UserError
from backbone.training import schedule
from backbone.training.compiling import Compiling, check_compiler
from backbone.training.meter import CURE, Meter
from backbone.training.notice import Leaving, Lookout
from backbone.training.optimizer import average_decay, build_optimizer
from backbone.training.recipe import Optim, TrainingRecipe
from backbone.training.resume import newest, take_best
from backbone.training.state import Checkpointer, Progress, Store, training_seconds
from backbone.training.world import Report, World, in_parallel

OURS = ("position", "samples", "bad")
"""What the loop itself reads of a batch. It is not passed on: a number that changes each step is compiled each step."""


class Task(Protocol):
    """What is trained."""

    @property
    def model(self) -> nn.Module:
        """What is saved, averaged and exported: never wrapped, so its keys carry no prefix."""
        ...

    @property
    def num_samples(self) -> int:
        """Training samples of one epoch."""
        ...

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch less `OURS`, tensors on the device -> (losses of its samples, float [N]; sums over them to log)."""
        ...

    def batches(self, micro_batches: MicroBatches) -> Iterable[Any]:
        """This rank's batches; each a dict with at least `position` (of its first sample) and `bad` (names)."""
        ...

    @property
    def max_bad(self) -> int:
        """Unreadable images that may be passed over before the run stops."""
        ...

    def blame(self, position: int) -> str:
        """What to look at where the loss of the sample at this position is not finite."""
        ...

    def evaluate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Validation metrics over all ranks; `error`, percent, is what schedules and the best checkpoint go by."""
        ...


def train(task: Task, recipe: TrainingRecipe, world: World, store: Store, report: Report) -> tuple[nn.Module, Progress]:
    """Train to the end of the recipe's schedule, from the newest checkpoint in `store` if there is one.

    Returns the model to export, of the last step or of the best as the recipe says (the moving average where it keeps
    one), and the progress. All ranks call it; only the first writes and reports.

    Raises:
        FloatingPointError: a loss, the gradient or the weights are not finite; names step and sample.
        UserError: the storage is full, or too many images are unreadable.
        RuntimeError: a rank cannot load the checkpoint that all go on from.
        Leaving: the world gave notice, and the state was saved; called again it goes on from there.
    """

    def say(text: str) -> None:
        if world.is_first:
            report({"kind": "say", "text": text})

    steps = schedule.in_steps(recipe.schedule, recipe.optim.batch, task.num_samples)

    def where(step: int) -> dict[str, Any]:
        return {"step": step, "total": steps.total, "epoch": step * steps.batch / steps.num_samples}

    trainer = Trainer(task, recipe.optim, recipe.compute, recipe.seed, world)
    progress = trainer.restore(newest(store, world, say))
    if progress.step:
        say(f"resuming at step {progress.step} of {steps.total}")
    micro_batches = MicroBatches(
        recipe.optim.batch, recipe.optim.micro_batch, world.rank, world.size, progress.step, steps.total
    )
    batches = iter(task.batches(micro_batches) if progress.step < steps.total else ())
    checkpointer = Checkpointer(store, recipe.run.keep)
    meter = Meter(world, recipe.optim.batch)
    lookout = Lookout(world, recipe.scaling.notice_every, progress.step)
    leaving = ""  # why, once there is a notice; the step after it proves its checkpoint
    unproven = False  # a checkpoint is held back until its own weights have shown a finite loss
    compiling = Compiling(recipe, world, task.num_samples)

    with checkpointer:
        while progress.step < steps.total:
            lr = schedule.learning_rate(recipe.schedule, recipe.optim, steps, progress.step, progress.events)
            logs = (progress.step + 1) % recipe.run.log_every == 0
            if compiles := compiling.due(progress.step):
                say(compiles)
                meter.begin_apart()
            trainer.step(batches, micro_batches, lr, progress.step, meter, measures=logs)
            progress.step += 1
            if compiles:
                say(f"compiled in {meter.set_apart():.0f} s")
            if unproven:
                meter.check(task.blame)
                checkpointer.commit()
                unproven = False
            if leaving:
                checkpointer.wait()
                world.gather(None)  # who leaves first may take the one that still writes along
                raise Leaving(leaving)

            ends = progress.step == steps.total
            ends_epoch = ends or steps.ends_epoch(progress.step)
            evaluates = ends or (ends_epoch and steps.epochs_done(progress.step) % recipe.run.eval_every == 0)
            # A checkpoint begins a new window of what is measured, which a rate that goes by measurements would feel.
            looks = not evaluates and (logs or not recipe.schedule.hold_lr)
            leaving = (
                f"{told}; saved at step {progress.step}" if looks and (told := lookout.look(progress.step)) else ""
            )
            saves = (
                evaluates
                or leaving
                or (recipe.run.checkpoint_every and progress.step % recipe.run.checkpoint_every == 0)
            )
            if logs or saves:
                record = {"kind": "log", **where(progress.step), "lr": lr, **meter.record(progress, task.blame)}
                if logs:
                    record["grad_norm"] = trainer.measured_norm(progress.step)
                    train_error = float(record.get("error", math.nan))
                    progress.events = schedule.after_log(recipe.schedule, progress.events, progress.step, train_error)
                progress.history.append(record)
                _check_bad(progress, task.max_bad)
                if world.is_first:
                    report(record)
            if saves:  # what is evaluated, saved and gone on with has the statistics of all ranks, killed or not
                trainer.share_statistics()
            if evaluates:
                metrics = evaluate(task, trainer.evaluated, world)
                progress.events = schedule.after_evaluation(
                    recipe.schedule, progress.events, progress.step, metrics["val_error"]
                )
                broken = [name for name, value in metrics.items() if not math.isfinite(value)]
                if broken:
                    raise FloatingPointError(f"{', '.join(broken)} is not finite after step {progress.step}; {CURE}")
                if metrics["val_error"] < progress.best:
                    progress.best, progress.best_step = metrics["val_error"], progress.step
                seconds = training_seconds(progress.history, steps.batch)
                progress.history.append(
                    {"kind": "evaluation", **where(progress.step), "train_seconds": seconds, **metrics}
                )
                report(progress.history[-1])
            if saves:
                trainer.check_weights(progress.step)
                if world.is_first:
                    latest = {key: value for key, value in progress.history[-1].items() if key.startswith("val_")}
                    checkpointer.hold(trainer.state(), progress, latest)
                unproven = not ends
                meter.restart()
        checkpointer.commit()
    if recipe.run.export == "best":
        progress.best_step = take_best(trainer.evaluated, progress, store, world, say)
    return trainer.evaluated, progress


def evaluate(task: Task, model: nn.Module, world: World) -> dict[str, float]:
    """Metrics of `model`, prefixed `val_`, the same on every rank; the model's mode is put back."""
    was_training = model.training
    model.eval()
    began = time.perf_counter()
    metrics = {f"val_{name}": value for name, value in task.evaluate(model, world).items()}
    model.train(was_training)
    return {**metrics, "val_seconds": time.perf_counter() - began}


class Trainer:
    """Model, optimizer, moving average and scaler: one optimizer step at a time."""

    def __init__(self, task: Task, optim: Optim, compute: Compute, seed: int, world: World) -> None:
        self.task, self.optim, self.compute, self.seed, self.world = task, optim, compute, seed, world
        model = task.model.to(world.device)
        if compute.channels_last:
            model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(model, optim)
        self.average = copy.deepcopy(model).eval().requires_grad_(False) if optim.ema else None
        self._statistics = paired_buffers(self.average, model) if self.average is not None else []
        self.autocast = autocast(compute, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=compute.precision == "fp16")
        self.units = optim.batch // optim.micro_batch
        module: nn.Module = _Loss(task)
        if compute.compile != "none":
            check_compiler(world)
            # In place: the saved keys carry no prefix. Images that grow have few sizes, each compiled as it is.
            module.compile(mode=compute.compile, dynamic=False)
        self.graphs = compute.compile == "reduce-overhead" and world.device.type == "cuda"
        self.keeps_gradients = self.graphs and self.units > world.size
        if self.keeps_gradients:
            # A graph's gradients lie in its own memory, which the next micro-batch overwrites; where several add up
            # they must have memory of their own. A single one's are read before that, and copying them is saved.
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        module = in_parallel(module, world)
        self.module = module.train()

    @property
    def evaluated(self) -> nn.Module:
        """The moving average where one is kept, else the model."""
        return self.average if self.average is not None else self.task.model

    def step(
        self, batches: Any, micro_batches: MicroBatches, lr: float, step: int, meter: Meter, measures: bool = False
    ) -> None:
        """One optimizer step: this rank's micro-batches forward and backward, gradients averaged over all of them.

        `measures`: keep the norm of the gradient for `measured_norm`.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        units = micro_batches.units
        for unit in units:
            batch = meter.wait_for(batches)
            # Dropout's generator is a function of the step too; it need not be saved to be resumed.
            seed_draws(mix(self.seed, step, unit) >> 1, self.world.device)
            is_last = unit == units[-1]
            if self.graphs:  # what the one before gave may be overwritten: `meter` has copied it
                torch.compiler.cudagraph_mark_step_begin()
            no_sync = self.module.no_sync if isinstance(self.module, DistributedDataParallel) and not is_last else None
            with no_sync() if no_sync else nullcontext():
                with self.autocast:
                    losses, sums = self.module({k: v for k, v in batch.items() if k not in OURS})
                # DDP divides by the number of ranks; ranks may hold different numbers of micro-batches.
                loss = losses.mean() * (self.world.size / self.units)
                self.scaler.scale(loss).backward()
            meter.add(losses.detach(), sums, batch)
        if self.optim.clip or measures:
            self.scaler.unscale_(self.optimizer)
            gradients = [p.grad for p in self.task.model.parameters() if p.grad is not None]
            self._norm = nn.utils.get_total_norm(gradients)
            if self.optim.clip:
                nn.utils.clip_grads_with_norm_(self.task.model.parameters(), self.optim.clip, self._norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)
        if self.average is not None:
            with torch.no_grad():
                average: list[Tensor] = list(self.average.parameters())
                now: list[Tensor] = list(self.task.model.parameters())
                torch._foreach_lerp_(average, now, 1 - average_decay(self.optim.ema, step))
                for mine, latest in self._statistics:
                    torch._foreach_copy_(mine, latest)

    def share_statistics(self) -> None:
        """See `World.share_buffers`: of the model and of its moving average. All ranks call it."""
        self.world.share_buffers(self.task.model)
        if self.average is not None:
            self.world.share_buffers(self.average)

    def measured_norm(self, step: int) -> float:
        """L2 norm of the whole gradient of the last step, before clipping.

        Raises:
            FloatingPointError: it is not finite, and the loss scaler will not make it so (fp16 skips such steps).
        """
        norm = self._norm.item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise FloatingPointError(f"the gradient is not finite at step {step}; {CURE}")
        return norm

    def check_weights(self, step: int) -> None:
        """FloatingPointError where a weight, a statistic or an average of either is not finite after `step`, or what
        the optimizer keeps of gradients."""
        trees = (self.task.model.state_dict(), self.average.state_dict() if self.average is not None else {})
        named = {name: value for tree in trees for name, value in tree.items()}
        for i, kept in enumerate(self.optimizer.state.values()):
            named |= {f"{name} {i}": value for name, value in kept.items()}
        floats = {name: value for name, value in named.items() if value.is_floating_point() and value.numel()}
        largest = torch._foreach_norm(list(floats.values()), math.inf)
        broken = [
            name for name, value in zip(floats, torch.stack(largest).tolist(), strict=True) if not math.isfinite(value)
        ]
        if broken:
            raise FloatingPointError(
                f"{broken[0]} and {len(broken) - 1} other tensors are not finite after step {step}; {CURE}"
            )

    def state(self) -> dict[str, Any]:
        """Everything but the progress, as a tree of tensors and numbers."""
        average = self.average.state_dict() if self.average is not None else {}
        return {
            "model": dict(self.task.model.state_dict()),
            "average": dict(average),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any] | None) -> Progress:
        """Take up a saved state, strictly; a fresh `Progress` where there is none."""
        if state is None:
            return Progress()
        self.task.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        saved = state["optimizer"]
        groups = [  # fused as on this device, not on the one the run began on; AdamW's step is put where that says
            {**group, **({"fused": own["fused"]} if "fused" in own else {})}
            for group, own in zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])
        return Progress.from_dict(state["progress"])


def autocast(compute: Compute, device: torch.device) -> torch.autocast:
    """The context in which the net runs: the recipe's precision, which is settled by now."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[compute.precision]
    return torch.autocast(device.type, dtype, enabled=compute.precision != "fp32")


def paired_buffers(average: nn.Module, model: nn.Module) -> list[tuple[list[Tensor], list[Tensor]]]:
    """The buffers of a model's copy and its own, one pair of lists a dtype: torch copies such lists in one launch."""
    kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for mine, latest in zip(average.buffers(), model.buffers(), strict=True):
        for buffers, buffer in zip(kinds.setdefault(mine.dtype, ([], [])), (mine, latest), strict=True):
            buffers.append(buffer)
    return list(kinds.values())


def seed_draws(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed` for the generators a step may draw from.

    That seeds those of all devices, and where CUDA is built in but absent notes the call stack: 0.2 ms a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class _Loss(nn.Module):
    """The task's loss as a module's forward, which is what DDP and torch.compile wrap."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._loss = task.loss

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._loss(batch)


def _check_bad(progress: Progress, max_bad: int) -> None:
    if len(progress.bad) > max_bad:
        raise UserError(
            f"{len(progress.bad)} unreadable images, more than data.max_bad {max_bad}: "
            + "; ".join(list(progress.bad)[:5])
        )
