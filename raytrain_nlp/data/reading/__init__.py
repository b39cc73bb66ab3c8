"""From what a job names (files, folders, buckets, the hub) to rows."""
