"""Powers of width and depth: derived, classified, printed (`python -m limits.exponents`)."""
