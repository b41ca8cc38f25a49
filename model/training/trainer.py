"""Train one model once: from its initial weights, or from where an interrupted attempt left off.

:func:`train` reads top to bottom. The state of a run after a step is its weights, its optimizer,
its :class:`~model.training.state.RunState` and the length of its metrics file. A checkpoint holds
all of them, so a resumed run continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model.config import ModelConfig
from model.own.source import load_own
from model.training.config import RuntimeConfig, TrainConfig
from model.training.data import PreparedCorpus
from model.training.evaluate import brief_steps, mixture_layers
from model.training.going_back import WayBack
from model.training.lines import steps_per_line, train_line
from model.training.progress import OnProgress, Teller
from model.training.reader import Reader
from model.training.result import TrainResult
from model.training.run import Run, initial_state, open_run
from model.training.runtime import set_up
from model.training.schedules import learning_rate, merged_steps
from model.training.stages import stage_at
from model.training.step import take_step
from model.training.stopping import Interrupted, sigterm_noticed
from model.training.stopwatch import Stopwatch
from model.training.whole import WholeModel

GO_ON, SAVE, STOP = range(3)
"""After a step; what the first process says holds for all."""


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    corpus: PreparedCorpus,
    runtime: RuntimeConfig,
    run_dir: Path,
    *,
    on_progress: OnProgress | None = None,
    name: str = "",
    snapshots_dir: Path | None = None,
    trunk_dir: Path | None = None,
    micro_batches: int = 1,
) -> TrainResult:
    """Train and evaluate one run, resuming from ``run_dir/checkpoints`` if there are any.

    Writes ``metrics.jsonl`` and ``checkpoints/`` into ``run_dir``. On SIGTERM (unless the caller
    handles that itself) the run is saved after the step it is in. Whatever ``on_progress`` raises
    ends the run in the same way, saved. ``name`` is what a mirror calls the run; without one it is
    the name of ``run_dir``. ``snapshots_dir`` is where the run keeps what outlives an attempt
    (``run_dir/snapshots`` by default), ``trunk_dir`` that folder of the trunk it may begin from.
    ``micro_batches``: parts that each batch is gone through in, where memory is short.

    Raises:
        ConfigError: the configs do not fit each other, the corpus, or what lies in ``run_dir``.
        Interrupted: stopped by SIGTERM; call again to go on.
    """
    load_own(model_config.own, runtime.data_dir)
    device = set_up(runtime, has_own_parts=bool(model_config.own))
    state = initial_state(model_config, config, device)
    run = open_run(
        WholeModel(model_config, config, state, device, micro_batches),
        config,
        corpus,
        runtime.tracker,
        run_dir,
        name=name,
        snapshots_dir=snapshots_dir,
        trunk_dir=trunk_dir,
    )
    with sigterm_noticed() as event:
        return train_run(run, on_progress, event.is_set)


def train_run(
    run: Run, on_progress: OnProgress | None, is_stopping: Callable[[], bool]
) -> TrainResult:
    """Train an open run to its end, in every process that has a share of it.

    ``is_stopping`` is asked after every step, in the first process alone; the run is then saved.

    Raises:
        Interrupted: it was asked to stop.
    """
    config, learner, health, heldout = run.config, run.learner, run.health, run.heldout
    snapshots, saver, log, stages = run.snapshots, run.saver, run.log, run.stages
    state = learner.state
    reader = Reader(run.corpus, run.spans)
    fp8 = learner.in_fp8(state.fp8_fallen)
    points = run.points
    way_back = WayBack(points, learner, log, saver, config) if points is not None else None

    layers = mixture_layers(learner.config)
    line_every = steps_per_line(config)
    briefly_after = brief_steps(config)
    is_merge = config.schedule.kind == "wsm"
    kept = {*config.checkpoint.states_at, *config.checkpoint.weights_at}
    kept |= {*merged_steps(config)} if is_merge else set()
    watch = Stopwatch(state.seconds)
    saved_step, saved_at = state.step if run.is_resumed else None, watch.last
    teller = Teller(on_progress, config.num_steps, config.batch_tokens, state.step, watch.last)
    reason = ""
    try:
        while state.step < config.num_steps and not reason:
            stage = stage_at(stages, state.step)
            learner.enter(stage)
            windows = reader.batch(state.step + state.skipped_steps)
            watch.lap("data")

            is_looked_at = fp8 is not None and fp8.is_due(state.step)
            if fp8 is not None and is_looked_at:
                fp8.watch()
            before, lr = state.step, stage.lr_factor * learning_rate(config, state.step)
            reason = take_step(learner, windows, config, stage, lr, health)
            if fp8 is not None and is_looked_at and state.step > before:
                log.write(fp8.verdict())
                state.fp8_fallen = list(fp8.fallen)
            now = watch.lap("step")
            if reason and way_back is not None and way_back.go(reason, before + 1):
                watch.lap("checkpoint")
                reason = ""
                continue
            if state.step == before:
                break

            if state.step % line_every == 0 or state.step == config.num_steps:
                load_LE = state.use.load_LE
                reason = reason or health.check_load(state.line_step, state.step, load_LE)
                log.write(train_line(state, config, lr, layers))
                state.begin_line()
                watch.lap("log")
            if state.step in briefly_after:
                log.write(heldout.briefly(stage).line())
                watch.lap("evaluate")
            if state.step == stage.last_step and stage is not stages[-1] and not reason:
                measured = heldout.of_stage(stage)
                state.stages.append(measured)
                log.write({"kind": "stage", **measured})
                watch.lap("evaluate")
            if state.step in kept and not reason and not snapshots.has(state.step):
                saver.keep_snapshot()
                watch.lap("checkpoint")
            if way_back is not None:
                way_back.remember(health.rise)
            wanted = SAVE if now - saved_at >= config.checkpoint.every_s else GO_ON
            if learner.is_first and is_stopping():
                wanted = STOP
            wanted = learner.agree(wanted)
            if wanted != GO_ON:
                saver.save()
                saved_step, saved_at = state.step, watch.lap("checkpoint")
            if wanted == STOP:
                raise Interrupted(state.step)
            try:
                teller.tell(state.step, now)
            except BaseException:
                saver.save()
                raise

        if reason:
            log.write({"kind": "diverged", "reason": reason})
        elif is_merge and not saver.is_merged:
            learner.restore(snapshots.merged(config))
            saver.is_merged = True
            saver.save()
        elif saved_step != state.step:
            saver.save()
        watch.lap("checkpoint")
        return run.end(reason, watch.lap)
    finally:
        log.close()
