"""Checkpoints of the state of all ranks, without pickle: writing, committing by a manifest, finding, deleting old ones,
and loading, also on another number of ranks.
"""
