"""Who generates the rollouts."""
