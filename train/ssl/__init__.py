"""Semi-supervised learning: labels, pool, step, algorithms."""
