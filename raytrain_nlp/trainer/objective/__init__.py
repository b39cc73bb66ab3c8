"""A loss that the task computes, not its model: in a training, and what its reference model says of the rows."""
