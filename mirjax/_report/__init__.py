"""Reports from files of features: reading them, measuring them in passes, and the pages."""
