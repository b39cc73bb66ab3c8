"""The machine this process runs on: its GPUs, signals, threads, processes and short-lived folders."""
