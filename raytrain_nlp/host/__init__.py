"""The machine that this process runs on: the GPUs it sees, signals, threads, processes, sockets and temporary
folders.
"""
