"""Starts groups of workers with Ray Train, watches them, and starts them again after failures."""
