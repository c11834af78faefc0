"""Eigenfaces: against scikit-learn's components, and what cannot be."""

import pytest
import torch
from sklearn.decomposition import PCA

from vplib.nets.eigenfaces import fit_eigenfaces


def test_codes_and_photos_are_those_of_sklearn():
    draws = torch.Generator().manual_seed(0)
    low = torch.randn(60, 5, generator=draws) * torch.tensor([5, 4, 3, 2, 1.0])
    images = 0.5 + 0.003 * (low @ torch.randn(5, 3 * 8 * 8, generator=draws)).view(60, 3, 8, 8)
    faces, peer = fit_eigenfaces(images, 5), PCA(5).fit(images.flatten(1).numpy())
    spans = faces.basis @ torch.from_numpy(peer.components_).T
    torch.testing.assert_close(spans.abs(), torch.eye(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(faces.decode(faces.encode(images)), images, atol=1e-4, rtol=0)
    torch.testing.assert_close(faces.encode(images).var(0, correction=0), torch.ones(5))
    assert torch.equal(faces.basis, fit_eigenfaces(images, 5).basis)


@pytest.mark.parametrize("dim", [0, 10, 200])
def test_a_code_is_shorter_than_the_list_of_photos(dim):
    with pytest.raises(ValueError, match="below the 10 photos"):
        fit_eigenfaces(torch.rand(10, 1, 4, 4), dim)
