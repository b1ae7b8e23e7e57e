"""A run on disk: its folder, its checkpoints, how it is stopped, and how its network is read again."""
