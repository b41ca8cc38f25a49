"""The errors a person can act on; each carries what happened, where, and what to do."""


class ConfigError(ValueError):
    """The caller can correct it: a value, a file, a column. The command line exits with 2."""


class RunFailed(RuntimeError):
    """A run ended without a record. Names the run and carries the tail of its log."""

    def __init__(self, run_id: str, reason: str, log_tail: str = "") -> None:
        super().__init__(f"run {run_id} failed: {reason}")
        self.run_id = run_id
        self.reason = reason
        self.log_tail = log_tail
