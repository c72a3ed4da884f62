"""One optimizer step, many of them in a call, where their batches come from, over which devices."""
