"""From a model and rows to predictions: rows as batches, the model with its task, parts of a large output."""
