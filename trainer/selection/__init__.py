"""What to draw next, on arrays alone: evidence, levels, strata, policies, the prompt stream."""
