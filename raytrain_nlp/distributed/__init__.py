"""Collectives between the ranks of a group of workers, their consensus before an update, the normalizer of a loss, and
the device that each rank computes on.
"""
