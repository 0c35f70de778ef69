"""Which parents hybrids in a folder come from; the folder itself is in `test_cli`."""

from collections import Counter

import pytest
import torch

from hybridgen.data.datasets import Part
from hybridgen.data.sources import InMemory
from hybridgen.evaluation.export import Parents


def part(count: int) -> Part:
    return Part(InMemory(torch.zeros(count, 3, 2, 2, dtype=torch.uint8)), torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize("others", [None, 3])
def test_pairs_are_uniform_and_of_one_part_two_different_images(others):
    semantic = part(4)
    nonsemantic = semantic if others is None else part(others)
    parents = Parents(semantic, nonsemantic, ("0",), "")
    drawn = Counter(parents.pair(0, index) for index in range(12_000))
    possible = {(c, r) for c in range(4) for r in range(others or 4) if others or c != r}
    assert set(drawn) == possible and len(possible) == 12
    assert all(abs(count - 1000) < 5 * (1000 * 11 / 12) ** 0.5 for count in drawn.values())
