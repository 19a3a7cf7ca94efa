"""What is learned: generated, shipped, or the user's own."""
