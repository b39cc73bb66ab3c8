"""A sweep's job file: the job, what is searched, and how. `load_sweep` is the way in; imports no ML library."""

from raytrain_nlp.config.sweep.job import Sweep, SweepJob
from raytrain_nlp.config.sweep.load import SweepSource, load_sweep

__all__ = ["Sweep", "SweepJob", "SweepSource", "load_sweep"]
