"""The job file. `load_job` is the way in."""

from raytrain_nlp.config.job import TrainJob
from raytrain_nlp.config.load import dump_job, load_job, plain_values, public_values, without_passwords

__all__ = ["TrainJob", "dump_job", "load_job", "plain_values", "public_values", "without_passwords"]
