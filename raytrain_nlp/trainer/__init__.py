"""The classes that stand around a user's `Trainer` and above `transformers.Trainer`: they feed it the plan's
micro-batches, normalize its losses over the global batch, and evaluate each row once.
"""
