"""The parts of ACIR against plain loops and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn

from shared.encoder.attention import DepthAttention, WindowAttention, attend
from shared.encoder.kan import BASES, GRID, ORDER, SplineLinear, spline_bases
from shared.encoder.vit import Block, PixelTransformer
from shared.errors import Invalid


def softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def weight(convolution):
    return convolution.weight.detach()[:, :, 0, 0].double()


def test_window_attention_is_what_loops_over_windows_heads_and_tokens_give():
    torch.manual_seed(0)
    attention = WindowAttention(5, 14, heads=2, head_dim=3)
    nn.init.normal_(attention.positions)
    x = torch.randn(2, 5, 14, 14)
    got = attention(x).detach().double()
    x = x.double()
    key, value = weight(attention.key_value).chunk(2)
    query, out, bias = weight(attention.query), weight(attention.out), attention.out.bias.detach().double()
    positions = attention.positions.detach()
    for image, top, left in [(0, 0, 0), (1, 7, 0), (1, 7, 7)]:
        cells = [(top + i // 7, left + i % 7) for i in range(49)]
        for mine in (0, 10, 48):
            heads = []
            for head in range(2):
                rows = slice(3 * head, 3 * head + 3)
                q = query[rows] @ x[image][:, cells[mine][0], cells[mine][1]]
                scores = [
                    float(q @ (key[rows] @ x[image][:, r, c])) / math.sqrt(3)
                    + float(positions[cells[mine][0] - r + 6, cells[mine][1] - c + 6])
                    for r, c in cells
                ]
                shares = softmax(scores)
                values = [value[rows] @ x[image][:, r, c] for r, c in cells]
                heads.append(sum(share * v for share, v in zip(shares, values, strict=True)))
            r, c = cells[mine]
            wanted = x[image][:, r, c] + out @ torch.cat(heads) + bias
            torch.testing.assert_close(got[image][:, r, c], wanted, rtol=1e-4, atol=1e-5)


def test_window_attention_refuses_sides_that_windows_of_seven_do_not_divide():
    with pytest.raises(Invalid, match="15"):
        WindowAttention(4, 15, 1, 4)


def test_windows_do_not_see_each_other():
    torch.manual_seed(0)
    attention = WindowAttention(4, 14, 2, 4)
    x = torch.randn(1, 4, 14, 14)
    changed = x.clone()
    changed[..., 7:, 7:] += 1
    before, after = attention(x), attention(changed)
    torch.testing.assert_close(before[..., :7, :], after[..., :7, :])
    assert (before[..., 7:, 7:] - after[..., 7:, 7:]).abs().min() > 0


def test_the_shallow_map_asks_and_the_deep_one_answers_by_plain_loops():
    torch.manual_seed(1)
    darf = DepthAttention(3, 5, heads=2, head_dim=4)
    shallow, deep = torch.randn(2, 3, 3, 3), torch.randn(2, 5, 3, 3)
    got = darf(shallow, deep).detach().double()
    shallow, deep = shallow.double(), deep.double()
    out = darf.out.weight.detach().double()
    for image in range(2):
        for mine in range(9):
            heads = []
            for head in range(2):
                rows = slice(4 * head, 4 * head + 4)
                q = weight(darf.query)[rows] @ shallow[image][:, mine // 3, mine % 3]
                cells = [deep[image][:, i // 3, i % 3] for i in range(9)]
                shares = softmax([float(q @ (weight(darf.key)[rows] @ cell)) / 2 for cell in cells])
                heads.append(sum(s * (weight(darf.value)[rows] @ cell) for s, cell in zip(shares, cells, strict=True)))
            torch.testing.assert_close(got[image][:, mine // 3, mine % 3], out @ torch.cat(heads), rtol=1e-4, atol=1e-5)


def test_swapped_maps_are_refused_by_their_channels():
    darf = DepthAttention(3, 5, 1, 4)
    with pytest.raises(RuntimeError, match="channels"):
        darf(torch.randn(1, 5, 7, 7), torch.randn(1, 3, 7, 7))


def test_shares_of_attention_sum_to_one():
    q, k = torch.randn(2, 3, 49, 8), torch.randn(2, 3, 49, 8)
    torch.testing.assert_close(attend(q, k, torch.ones(2, 3, 49, 1)), torch.ones(2, 3, 49, 1))


def test_attention_is_that_of_torch():
    q, k, v, bias = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8), torch.randn(9, 9)
    torch.testing.assert_close(attend(q, k, v, bias), nn.functional.scaled_dot_product_attention(q, k, v, bias))


def knots():
    step = 2 / GRID
    return np.array([-1 + step * (i - ORDER) for i in range(GRID + 2 * ORDER + 1)])


def test_the_bases_are_the_cubic_b_splines_of_scipy():
    x = np.linspace(-2.6, 2.6, 301)
    wanted = np.zeros((len(x), BASES))
    for j in range(BASES):
        spline = BSpline.basis_element(knots()[j : j + ORDER + 2], extrapolate=False)
        wanted[:, j] = np.nan_to_num(spline(x))
    got = spline_bases(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    assert got[np.abs(x) <= 1].sum(1) == pytest.approx(1)
    assert (got[np.abs(x) > 2.2] == 0).all()


def test_a_spline_layer_is_a_sum_over_edges():
    torch.manual_seed(2)
    layer = SplineLinear(3, 2).requires_grad_(requires_grad=False)
    x = torch.randn(4, 3)
    bases = [BSpline.basis_element(knots()[j : j + ORDER + 2], extrapolate=False) for j in range(BASES)]
    for row, got in zip(x.tolist(), layer(x), strict=True):
        for o in range(2):
            total = 0.0
            for i, value in enumerate(row):
                total += float(layer.base[o, i]) * value / (1 + math.exp(-value))
                for j, basis in enumerate(bases):
                    total += float(layer.scale[o, i] * layer.coefficients[o, i, j]) * np.nan_to_num(basis(value))
            assert float(got[o]) == pytest.approx(total, abs=1e-6)


def test_gradients_of_the_splines_are_right():
    x = (torch.rand(6, 2, dtype=torch.float64) * 4 - 2).requires_grad_()
    assert torch.autograd.gradcheck(spline_bases, (x,))


def test_a_spline_layer_learns_a_sine():
    torch.manual_seed(0)
    layer = SplineLinear(1, 1)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    x = torch.linspace(-1, 1, 64)[:, None]
    for _ in range(200):
        loss = (layer(x) - torch.sin(3 * x)).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1e-3


def test_a_block_is_torchs_encoder_layer():
    torch.manual_seed(0)
    block = Block(12, heads=3, head_dim=4).eval()
    layer = nn.TransformerEncoderLayer(12, 3, 48, activation="gelu", batch_first=True, norm_first=True).eval()
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(block.query_key_value.weight)
        layer.self_attn.in_proj_bias.zero_()
        layer.self_attn.out_proj.load_state_dict(block.out[0].state_dict())
        layer.norm1.load_state_dict(block.norm.state_dict())
        layer.norm2.load_state_dict(block.perceptron[0].state_dict())
        layer.linear1.load_state_dict(block.perceptron[1].state_dict())
        layer.linear2.load_state_dict(block.perceptron[4].state_dict())
        x = torch.randn(2, 5, 12)
        torch.testing.assert_close(block(x), layer(x), rtol=1e-5, atol=1e-5)


def test_the_last_layers_are_joined_and_cells_keep_their_places():
    torch.manual_seed(0)
    transformer = PixelTransformer(6, 9, dim=8, depth=3, heads=2, last=2).eval()
    x = torch.randn(2, 6, 3, 3)
    cls, cells = transformer(x)
    assert cls.shape == (2, 16)
    assert cells.shape == (2, 9, 16)
    moved = transformer(x.flip(-1))[1]
    assert not torch.allclose(moved, cells)
    with torch.no_grad():
        transformer.positions.zero_()
    plain, mirrored = transformer(x)[1], transformer(x.flip(-1))[1]
    torch.testing.assert_close(mirrored.unflatten(1, (3, 3)).flip(2).flatten(1, 2), plain)
