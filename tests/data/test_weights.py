import torch

from data.weights import packed, unpacked


def test_of_the_same_weights_there_is_one_file() -> None:
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.int64)}
    metadata = {str(number): f"ä {number}" for number in range(20)}
    content = packed(weights, metadata)
    assert packed(weights, dict(reversed(metadata.items()))) == content
    found, said = unpacked(content)
    assert said == {"format": "pt", **metadata}
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
