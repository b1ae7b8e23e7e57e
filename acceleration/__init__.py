"""The machine: its devices, and what makes training faster on them and changes no result."""
