"""Proposes a job for a file of rows: finds out what its columns are, which task they are for, and which model fits."""
