"""One file an experiment: the paper's figure, the command, the cost, then the declaration."""
