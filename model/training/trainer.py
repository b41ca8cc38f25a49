"""Train one model once: from its initial weights, or from where an interrupted attempt left off.

:func:`train` reads top to bottom. The state of a run after a step is its weights, its optimizer,
its :class:`~model.training.state.RunState` and the length of its metrics file. A checkpoint holds
all of them, so a resumed run goes on bit for bit.
"""

from __future__ import annotations

import logging
from pathlib import Path

from model.config import ModelConfig
from model.training.config import RuntimeConfig, TrainConfig
from model.training.data import PreparedCorpus
from model.training.evaluate import brief_steps, mixture_layers
from model.training.fp8 import Fp8Layers
from model.training.going_back import WayBack
from model.training.lines import steps_per_line, train_line
from model.training.progress import OnProgress, Teller
from model.training.reader import Reader
from model.training.result import TrainResult
from model.training.run import open_run
from model.training.runtime import set_up
from model.training.schedules import learning_rate, merged_steps
from model.training.stages import enter, stage_at
from model.training.step import take_step
from model.training.stopping import Interrupted, sigterm_noticed
from model.training.stopwatch import Stopwatch

logger = logging.getLogger(__name__)


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
) -> TrainResult:
    """Train and evaluate one run, resuming from ``run_dir/checkpoints`` if there are any.

    Writes ``metrics.jsonl`` and ``checkpoints/`` into ``run_dir``. On SIGTERM (unless the caller
    handles that itself) the run is saved after the step it is in. Whatever ``on_progress`` raises
    ends the run in the same way, saved. ``name`` is what a mirror calls the run; without one it is
    the name of ``run_dir``. ``snapshots_dir`` is where the run keeps what outlives an attempt
    (``run_dir/snapshots`` by default), ``trunk_dir`` that folder of the trunk it may begin from.

    Raises:
        ConfigError: the configs do not fit each other, the corpus, or what lies in ``run_dir``.
        Interrupted: stopped by SIGTERM; call again to go on.
    """
    device = set_up(runtime)
    run = open_run(
        model_config,
        config,
        corpus,
        runtime,
        run_dir,
        device,
        name=name,
        snapshots_dir=snapshots_dir,
        trunk_dir=trunk_dir,
    )
    learner, health, heldout = run.learner, run.health, run.heldout
    snapshots, saver, log, stages = run.snapshots, run.saver, run.log, run.stages
    model, state = learner.model, learner.state
    reader = Reader(corpus, run.spans)
    fp8 = Fp8Layers(model, state.fp8_fallen) if config.precision == "fp8" else None
    points = run.points
    way_back = WayBack(points, learner, log, saver, config) if points is not None else None

    layers = mixture_layers(model_config)
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
        with sigterm_noticed() as is_stopping:
            while state.step < config.num_steps and not reason:
                stage = stage_at(stages, state.step)
                enter(stage, model)
                batch = reader.batch(state.step + state.skipped_steps).to(device)
                watch.lap("data")

                is_looked_at = fp8 is not None and fp8.is_due(state.step)
                if fp8 is not None and is_looked_at:
                    fp8.watch()
                before, lr = state.step, stage.lr_factor * learning_rate(config, state.step)
                reason = take_step(learner, batch, config, stage, lr, health)
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
                if now - saved_at >= config.checkpoint.every_s or is_stopping.is_set():
                    saver.save()
                    saved_step, saved_at = state.step, watch.lap("checkpoint")
                if is_stopping.is_set():
                    raise Interrupted(state.step)
                try:
                    teller.tell(state.step, now)
                except BaseException:
                    saver.save()
                    raise

        if reason:
            log.write({"kind": "diverged", "reason": reason})
        elif is_merge and not saver.is_merged:
            model.load_state_dict(snapshots.merged(config))
            saver.is_merged = True
            saver.save()
        elif saved_step != state.step:
            saver.save()
        watch.lap("checkpoint")
        return run.end(reason, watch.lap)
    finally:
        log.close()
