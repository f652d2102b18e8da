"""Search depth and schedule, on this machine or on a Ray cluster:

python jobs/sweep.py --config jobs/recipes/quickstart/sweep.yaml
python jobs/sweep.py --config jobs/recipes/quickstart/sweep.yaml --budget.trials 16 --dry-run
python jobs/sweep.py --config jobs/recipes/sweeps/cifar10.yaml --base_with.data.train 'cifar10/train-*.parquet'
ray job submit --working-dir . -- python jobs/sweep.py --config ... --storage /shared/runs
"""

import sys
import time

import backbone.begin  # noqa: F401
from backbone.cli import parse, rates_of, run_main
from backbone.lease import lease
from backbone.next_steps import line
from backbone.storage import filesystem, join
from backbone.supervise import is_watched, keep_going
from backbone.sweep.options import Sweep
from backbone.sweep.space import base_tree, recipe_at
from backbone.training.run import run_place


def main() -> None:
    words, rates_file = rates_of(sys.argv[1:])
    told = {"dry_run": "print trials, epochs by rungs and disk, then stop; --rates FILE adds hours"}
    sweep, flags = parse(Sweep, words, told, __doc__, recipe=True)
    if flags["dry_run"]:
        from backbone.sweep.forecast import describe
        from backbone.training.cost import read_rates

        if sweep.finetune:
            from detection.objective import DetectionAP

            DetectionAP.of(sweep).check()
        print(describe(sweep, read_rates(rates_file) if rates_file else None))
        return
    if not is_watched():
        raise SystemExit(watch(sweep))
    from backbone.sweep.run import run
    from backbone.sweep.view import page, summary  # from here on torch and Ray are imported, which takes seconds
    from detection.objective import DetectionAP

    began = time.monotonic()
    detection_ap = DetectionAP.of(sweep) if sweep.finetune else None
    if detection_ap:
        detection_ap.check()
    record = run(sweep, detection_ap)
    fs, path = filesystem(join(record.url, "report.html"))
    fs.pipe_file(path, page.report(record).encode())
    said = summary.headline(record), summary.left(record), summary.caveat(record)
    print("\n".join(filter(None, said)))
    print("\n".join(["Pareto front:", *summary.front(record)]))
    print(f"finished in {time.monotonic() - began:.0f} s")
    print(f"report    {join(record.url, 'report.html')}")
    print(line("pretrain", "--config", join(record.url, "best.yaml")))


def watch(sweep: Sweep) -> int:
    """Have the sweep done by a process of its own, again and again where that is lost; returns its exit code."""
    times = recipe_at(sweep, base_tree(sweep), {}).scaling.max_failures
    with lease(run_place(sweep.storage, sweep.name)) as held:
        return keep_going(times, held.token)


if __name__ == "__main__":
    run_main(main, "go on")
