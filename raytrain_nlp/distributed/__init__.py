"""What the ranks of one group of workers do together: collectives, consensus, the normalizer of a loss, the device of
each.
"""
