"""From a job to what its workers receive: inputs, labels, model checks, resolved steps, windows."""
