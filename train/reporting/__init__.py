"""Records of metrics, tables and pictures of them, what the paper claims beside what was measured."""
