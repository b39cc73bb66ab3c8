"""What nothing else would tell of. `training.verify_every`, errors of memory and processors: `verifier` is the story of
a step, `resting` finds what changes between two updates (sums of bits), `twice` computes gradients again elsewhere. And
`stragglers`: which rank is slower than the others.
"""
