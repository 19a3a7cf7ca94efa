"""What several questions ask of numbers: power laws of the size, growth in time, and where a loss is lowest."""
