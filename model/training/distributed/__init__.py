"""One run over many processes: data, sharded, expert and pipeline parallel, by PyTorch's engine."""
