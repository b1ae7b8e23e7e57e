"""Networks to compare with: the study's, torchvision's as it is, self-attention in place of the convolutions."""
