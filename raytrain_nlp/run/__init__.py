"""The folder of a run, as both the driver and the workers use it."""
