"""Whether the curvature along training stays the same at every size."""
