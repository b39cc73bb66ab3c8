"""A run's folder, as driver and workers both use it."""
