"""Curves and figures of a run."""
