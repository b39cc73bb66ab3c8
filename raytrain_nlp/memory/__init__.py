"""The memory planner: what a rank needs, what it has, what fits."""
