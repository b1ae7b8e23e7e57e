"""Going on from trained weights: what of them is taken, and which parts of a network stay as they are."""
