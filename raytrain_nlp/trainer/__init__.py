"""Between a user's `Trainer` and `transformers.Trainer`: what feeds it, what its losses are means of, how it
evaluates.
"""
