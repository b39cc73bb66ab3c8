"""A sweep: Ray Tune over `train`. `sweep.py` is the story; Ray, Optuna and MLflow are imported where they are used."""
