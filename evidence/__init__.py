"""The experiments and what they came to: runs, networks, figures."""
