"""From a file of rows to the job that trains on it: what its columns are, which task they are for, which model fits."""
