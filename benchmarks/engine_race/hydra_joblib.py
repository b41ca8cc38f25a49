"""Hydra multirun with the joblib launcher: ``hydra_joblib.py -m number=range(60) folder=...``."""

from pathlib import Path

import hydra
import task
from hydra.core.config_store import ConfigStore

ConfigStore.instance().store("config", {"number": 0, "folder": "."})


@hydra.main(version_base=None, config_name="config")
def main(config):
    return task.run(Path(config.folder), config.number)


if __name__ == "__main__":
    main()
