"""Where images come from, how they are read, and the loaders that hand them out."""
