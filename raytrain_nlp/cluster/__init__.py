"""Ray as driver and workers use it: connecting, resources, capacity, and what a job leaves to the machine. Imports Ray
and plain modules only.
"""
