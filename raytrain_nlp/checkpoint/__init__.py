"""The state of a run on all ranks, without pickle: staged, committed by a manifest, found, retired, loaded, also on
another number of ranks.
"""
