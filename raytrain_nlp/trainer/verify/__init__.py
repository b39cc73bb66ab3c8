"""`training.verify_every`: errors of memory and processors that nothing else would tell of. `verifier` is the story of
a step: `resting` finds what changes between two updates (sums of bits), `twice` computes gradients again elsewhere.
"""
