"""Label smoothing (Szegedy et al., 2016, section 7), with which the study trains."""

from torch import nn


class LabelSmoothing(nn.CrossEntropyLoss):
    """Cross entropy against (1 − ε)·one-hot + ε / classes: logits (b, classes), labels (b,) -> mean over the batch.

    Labels may be (b, classes), the share of each class, in place of one-hot.
    """

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__(label_smoothing=smoothing)
