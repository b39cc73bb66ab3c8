"""From rows to batches: rows are tokenized once into shards, put into batches by a plan, and streamed to each rank by
Ray Data.
"""
