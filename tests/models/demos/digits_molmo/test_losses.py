import torch

from blockexport.models.demos.digits_molmo.losses import attend_in_float32, sight_loss


def test_sight_is_perfect_when_tokens_show_the_digit():
    features = torch.zeros(1, 3, 4, 10)
    features[0, 0, 2, 7] = features[0, 2, 1, 7] = 50.0
    indices = torch.zeros(1, 3, 4, dtype=torch.long)
    shares = torch.nn.functional.one_hot(torch.tensor([7]), 10).float()
    assert sight_loss(torch.nn.Identity(), features, indices, shares) < 1e-6
    # Tokens that are dropped from the sequence show nothing.
    indices[0, 0, 2] = indices[0, 2, 1] = -100
    assert sight_loss(torch.nn.Identity(), features, indices, shares) > 1


def test_attention_under_autocast_is_that_of_float32():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8).bfloat16()
    module = torch.nn.Module()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, _ = attend_in_float32(module, query, key, value, None, scaling=0.3, is_causal=False)
    expected = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=0.3)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected.transpose(1, 2))
