"""The experiments: a module for each notebook, what they share, and `catalogue` with all of them and their figures."""
