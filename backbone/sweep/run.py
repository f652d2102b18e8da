"""A sweep from beginning to end, on the cluster there is."""

import os
from collections.abc import Callable

from backbone.cluster import check_resources, connect, dashboard_url, lost, places_of, room
from backbone.errors import Lost, UserError, last_line
from backbone.lease import lease
from backbone.stopping import Stopped, stop_of
from backbone.sweep.board import Board
from backbone.sweep.options import Sweep
from backbone.sweep.record import Record
from backbone.sweep.trial import DetectionAP
from backbone.training.run import run_place

DEFAULTS = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # AP and latency come with a trial's last report only
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; the board says what there is to say
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # nor does it know how this sweep goes on
}


def run(sweep: Sweep, detection_ap: DetectionAP | None = None, say: Callable[[str], None] = print) -> Record:
    """Run a sweep, or go on with it, to its end.

    Raises:
        UserError: a mistake in the sweep, or another process is at it; a cluster that cannot hold a trial; or no trial
            finished.
        Lost: the cluster it runs on is gone.
    """
    with lease(run_place(sweep.storage, sweep.name), say=say) as held:
        board = Board(sweep, say, held)
        if not board.todo and board.search.exhausted:
            say("all of its trials have ended")
            if board.record.state != "finished":  # who ran it was ended before the last word
                board.end("finished", board.over_budget())
        else:
            _run(board, detection_ap, say)
        if not board.record.best:
            why = board.record.why  # a budget's
            if why and (board.record.of_state("waiting") or not board.search.exhausted):
                raise UserError(f"no trial finished: {why}; a larger --{why.partition(' ')[0]} goes on with them")
            raise UserError(f"no trial finished; see the log.txt of each in {board.record.url}/trials")
        return board.record


def _run(board: Board, detection_ap: DetectionAP | None, say: Callable[[str], None]) -> None:
    scaling = board.base.scaling
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    ray, started = connect(say)
    from backbone.sweep.tuning import tune_board  # imports ray, which reads what connect has set

    try:
        check_resources(scaling)
        places = places_of(scaling, room(scaling), board.sweep.parallel)
        board.record.places, board.record.dashboard = places, dashboard_url()
        board.record.devices = f"{scaling.num_workers} worker(s) of " + ("1 GPU" if scaling.use_gpu else "1 CPU slot")
        board.announce(places)
        tune_board(board, places, detection_ap)
    except BaseException as error:
        stop = stop_of(error)
        if stop:
            say(f"stopped with {board.counts()} trials; submit again to go on")
            Stopped.told = True
            board.end("interrupted", "by hand")
            raise stop from None
        board.end("interrupted", f"{type(error).__name__}: {last_line(error)}")
        if lost(error):
            raise Lost(
                f"the sweep's part of the cluster is gone ({type(error).__name__}: {last_line(error)})"
            ) from error
        raise
    finally:
        if started:
            ray.shutdown()
    board.end("finished", board.over_budget())
