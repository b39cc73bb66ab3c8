"""Reading: from the files, folders, buckets and hub datasets that a job names to rows."""
