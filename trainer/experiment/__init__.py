"""Training recipes side by side: the plan, its cells as processes, results with intervals."""
