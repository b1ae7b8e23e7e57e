"""What a test comes to: figures, tables and pictures of it."""
