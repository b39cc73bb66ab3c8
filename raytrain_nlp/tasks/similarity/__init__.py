"""Sentence similarity: the task, its losses and figures, its model, and the files that sentence-transformers reads."""
