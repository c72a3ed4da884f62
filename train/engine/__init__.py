"""Training: optimizer steps, many of them in one call, their batches, and their devices."""
