"""Around the cells: which are missing, the process of each, progress, and a Ray cluster."""
