"""Whether the best learning rate moves with the size."""
