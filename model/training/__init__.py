"""How one run is trained: configuration (torch-free), data, trainer, checkpoints, trackers."""
