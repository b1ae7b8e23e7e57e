import numpy as np
import torch

from data_sources.normalisation import measure_normalisation


def test_normalisation_is_that_of_all_pixels_together() -> None:
    images = torch.randint(256, (9, 5, 5, 3), dtype=torch.uint8)
    measured = measure_normalisation(images.split(4))
    values = images.numpy() / 255.0
    np.testing.assert_allclose(measured.mean, values.mean((0, 1, 2)))
    np.testing.assert_allclose(measured.std, values.std((0, 1, 2)))
    normalised = measured.apply(images)
    expected = (values - values.mean((0, 1, 2))) / values.std((0, 1, 2))
    np.testing.assert_allclose(normalised.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(measured.undo(normalised).numpy(), values.transpose(0, 3, 1, 2), atol=1e-6)
