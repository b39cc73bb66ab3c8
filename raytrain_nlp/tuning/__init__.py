"""Sweeps: Ray Tune over `train`. `sweep.py` is the entry. Ray, Optuna and MLflow are imported where they are used."""
