"""Semi-supervised learning: which samples keep labels, the pool, the step, and the algorithms."""
