"""The machine this process runs on: which GPUs it sees, signals, threads, processes and short-lived folders."""
