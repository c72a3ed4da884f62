"""One matrix: its spectrum, decompositions and entropy, and the precision they need."""
