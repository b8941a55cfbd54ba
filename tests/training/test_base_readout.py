"""Readouts become partly whitened principal components, equal to numpy's; all other weights are unchanged."""

import numpy as np
import pytest
import torch

from shared.encoder.acir import XS, Acir
from shared.errors import Invalid
from shared.training.readout import contents, readouts, whiten


@pytest.fixture(scope="module")
def views():
    return torch.rand(600, 3, 112, 112, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pair(views):
    """The network before and after whitening, and the inputs of its first and last readouts."""
    torch.manual_seed(0)
    before = Acir(XS, 16, 0, side=112, decoder=False).eval()
    after = Acir(XS, 16, 0, side=112, decoder=False).eval()
    after.load_state_dict(before.state_dict())
    given: dict[int, list[torch.Tensor]] = {0: [], 2: []}
    handles = [
        readouts(after)[n].register_forward_pre_hook(lambda _, inputs, n=n: given[n].append(inputs[0])) for n in given
    ]
    whiten(after, views)
    for handle in handles:
        handle.remove()
    return before, after, {n: torch.cat(parts).double().numpy() for n, parts in given.items()}


def components(x, dim):
    """Principal components of standardised features, divided by variance to the power of 0.4, largest last."""
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    _, values, axes = np.linalg.svd(z, full_matrices=False)
    return (axes[:dim] / (values[:dim, None] ** 2 / len(x)) ** 0.4)[::-1], x.mean(0), x.std(0, ddof=1)


def test_the_first_part_is_whitened_components_of_its_inputs(pair, views):
    _, after, given = pair
    axes, mean, deviation = components(given[0], 256)
    wanted = (given[0][:40] - mean) / deviation @ axes.T
    found = contents(after, views[:40])[0][:, :256].numpy()
    assert np.allclose(np.abs(found[:, -20:]), np.abs(wanted[:, -20:]), atol=5e-2)  # the sign of an axis is arbitrary


def test_the_third_part_keeps_its_mean_because_it_has_no_bias(pair, views):
    _, after, given = pair
    axes, _, deviation = components(given[2].mean(1), 64)
    wanted = given[2][:40].mean(1) / deviation @ axes.T
    found = contents(after, views[:40])[0][:, -64:].numpy()
    assert np.allclose(np.abs(found[:, -5:]), np.abs(wanted[:, -5:]), atol=5e-2)


def test_only_the_readouts_change(pair):
    before, after, _ = (part.state_dict() if hasattr(part, "state_dict") else part for part in pair)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"whole.weight", "whole.bias", "local.weight", "local.bias", "darf.attention.out.weight"}


def test_fewer_views_than_features_are_refused(pair, views):
    with pytest.raises(Invalid, match="more views"):
        whiten(pair[0], views[:500])


def test_a_network_without_darf_has_no_third_readout():
    with pytest.raises(Invalid, match="DaRF"):
        readouts(Acir(XS, 16, 0, side=112, darf=False, decoder=False))
