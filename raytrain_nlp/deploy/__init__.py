"""An exported model on its way to others: its card, a Ray Serve application, GGUF, the hub, lm-evaluation-harness."""
