import torch

from reference_networks.attention import SelfAttention2d


def test_self_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    layer = SelfAttention2d(8, (2, 3), heads=2).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64)
    tokens = [x[0, :, row, column] for row in range(2) for column in range(3)]
    query, key, value = (
        torch.stack([weight @ token for token in tokens]) for weight in layer.to_queries_keys_values.weight.chunk(3)
    )
    for position in range(6):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = []
            for other in range(6):
                rows, columns = other // 3 - position // 3, other % 3 - position % 3
                bias = layer.bias[head, (rows + 1) * 5 + columns + 2]
                scores.append(query[position, part] @ key[other, part] / 2 + bias)
            weights = torch.stack(scores).softmax(0)
            expected = sum(weight * row for weight, row in zip(weights, value[:, part], strict=True))
            torch.testing.assert_close(layer(x)[0, part, position // 3, position % 3], expected)
