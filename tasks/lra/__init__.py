"""Long Range Arena (Tay et al. 2020, arXiv 2011.04006): one label for 1024 to 16384 tokens."""
