"""From rows to batches: prepared once as token shards, planned by a seed, fed to each rank by Ray Data."""
