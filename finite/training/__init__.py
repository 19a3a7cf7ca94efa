"""Training on the device, and what is measured on the way."""
