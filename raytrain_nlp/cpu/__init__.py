"""What makes machines without GPUs fast: forked processes, huge pages, the mean of gradients in shared memory. All works without it."""
