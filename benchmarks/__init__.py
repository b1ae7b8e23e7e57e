"""What `benchmark.py` measures, and the tables that are computed from it."""
