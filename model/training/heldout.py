"""When a run is measured on held-out text: on the way, at the end of its stages, at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.training.config import TrainConfig
from model.training.data import PreparedCorpus
from model.training.evaluate import Evaluator
from model.training.evaluation import Evaluation
from model.training.learner import Learner
from model.training.stages import Stage


class HeldoutMeasures:
    """The evaluations of one run, each with windows of the length of the stage it is in."""

    def __init__(
        self,
        corpus: PreparedCorpus,
        config: TrainConfig,
        stages: Sequence[Stage],
        learner: Learner,
    ) -> None:
        self._corpus, self._config, self._learner = corpus, config, learner
        self._one_length = len({stage.sequence_length for stage in stages}) == 1
        self._evaluators: dict[int, Evaluator] = {}

    def briefly(self, stage: Stage) -> Evaluation:
        """On the way, on an eighth of the windows."""
        use = self._learner.state.use
        evaluation = self._evaluator(stage).briefly(self._learner.forward, use.choices_LTK)
        # Of other windows where the stages' lengths differ: no two can be compared.
        use.choices_LTK = evaluation.choices_LTK if self._one_length else None
        return evaluation

    def at_the_end(self, stage: Stage) -> Evaluation:
        """The run's own measurement, with the model in its last stage."""
        # A readout of a trunk may have no evaluation before: its record must not depend on that.
        is_trunk = self._config.schedule.trunk
        earlier_LTK = None if is_trunk else self._learner.state.use.choices_LTK
        return self._evaluator(stage)(self._learner.forward, earlier_LTK)

    def of_stage(self, stage: Stage, evaluation: Evaluation | None = None) -> dict[str, Any]:
        """What a stage that is over measured; ``evaluation``: of its end, if there is one."""
        if evaluation is None:
            evaluation = self._evaluator(stage)(self._learner.forward)
        return {
            "name": stage.name,
            "steps": self._learner.state.step,
            "sequence_length": stage.sequence_length,
            "loss_nats": evaluation.loss_nats,
            "by_position": [list(found) for found in evaluation.by_position],
        }

    def _evaluator(self, stage: Stage) -> Evaluator:
        length = stage.sequence_length
        if length not in self._evaluators:
            self._evaluators[length] = Evaluator(
                self._learner.config,
                self._corpus,
                sequence_length=length,
                tokens_per_domain=self._config.evaluation.heldout_tokens,
            )
        return self._evaluators[length]
