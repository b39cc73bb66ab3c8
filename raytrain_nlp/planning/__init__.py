"""From a job to what its workers receive. The driver finds the files, checks the values against the libraries and the
model, prepares tokens and labels, and plans the steps.
"""
