"""Records of metrics, their tables and pictures, and claims of the paper beside measurements."""
