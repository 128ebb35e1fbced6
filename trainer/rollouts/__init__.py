"""Generations that are rolled out in rounds: which rollouts there are, and which of them the optimiser gets."""
