"""Which parents hybrids in a folder come from, and its rows; the folder itself is in `test_cli`."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from hybridgen.data.datasets import Part
from hybridgen.data.sources import InMemory
from hybridgen.evaluation import export
from hybridgen.evaluation.export import MANIFEST, Parents
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.types import InputError


def part(count: int) -> Part:
    return Part(InMemory(torch.zeros(count, 3, 2, 2, dtype=torch.uint8)), torch.zeros(count, dtype=torch.int64))


def knowing(*classes: str) -> Hybridizer:
    shape = dict(image_size=16, classes=len(classes), network="leaky-wrn-10-1", generator_channels=(4, 4))
    return Hybridizer(SemanticAutoencoder(Architecture(**shape)), Origin("x", "0", "0", classes))


@pytest.mark.parametrize("others", [None, 3])
def test_pairs_are_uniform_and_of_one_part_two_different_images(others):
    semantic = part(4)
    nonsemantic = semantic if others is None else part(others)
    parents = Parents(semantic, nonsemantic, ("0",), "")
    drawn = Counter(parents.pair(0, index) for index in range(12_000))
    possible = {(c, r) for c in range(4) for r in range(others or 4) if others or c != r}
    assert set(drawn) == possible and len(possible) == 12
    assert all(abs(count - 1000) < 5 * (1000 * 11 / 12) ** 0.5 for count in drawn.values())


def test_files_are_told_from_others_by_pixels_and_roles(tmp_path):
    """Their classes are not known."""
    paths = [tmp_path / name for name in ("0.png", os.fsdecode(b"\xfc.png"), "2.png")]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((9, 7, 3), 80 * i, np.uint8)).save(path)
    hybridizer = knowing("a", "b")
    made = [Parents.of_files(paths[:count], paths[count:], hybridizer) for count in (1, 2, 1)]
    sources = [parents.source for parents in made]
    assert sources[0] == sources[2] != sources[1] and sources[0].startswith("files ")
    assert made[1].semantic.files == (str(paths[0]), rf"{tmp_path}/\xfc.png")
    assert made[0].classes == ("a", "b") and made[0].nonsemantic.labels.tolist() == [-1, -1]
    assert made[1].semantic.images.pixels[:, 0, 0, 0].tolist() == [0, 80]


def test_folders_of_classes_hold_no_signs_that_folders_cannot():
    assert export._folder_names(("a/b", "a\\c", ".hidden", "", "x.y", "é")) == [
        "a_b",
        "a_c",
        "_hidden",
        "_",
        "x.y",
        "é",
    ]
    with pytest.raises(InputError, match=r"^classes: 'a_b' and 'a/b' would share the folder 'a_b'"):
        export._folder_names(("c", "a/b", "a_b"))


def test_what_cannot_be_hybridized_is_refused():
    hybridizer, one = knowing("0", "1"), part(1)
    with pytest.raises(InputError, match=r"^images: a hybrid has two parents, and there is one image"):
        export._check_classes(hybridizer, Parents(one, one, ("0", "1"), ""))
    export._check_classes(hybridizer, Parents(one, part(1), ("0", "1"), ""))
    with pytest.raises(InputError, match=r"^hybridizer: trained on the classes 0, 1, and not on those of .*, 1, 2$"):
        export._check_classes(hybridizer, Parents(one, one, ("1", "2"), ""))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[3]", "another count \\(None; this is 3\\)"),
        ('{"count": 4}', "another count \\(4; this is 3\\)"),
    ],
)
def test_folders_of_other_or_damaged_descriptions_are_left_alone(tmp_path, text, says):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=f"{says}.*; give another folder$"):
        export._claim(tmp_path, {"count": 3})
    assert (tmp_path / MANIFEST).read_text() == text


@pytest.mark.parametrize("kept", [b"\x56\xc3", b'"V\xc3\xb6gel', b""])
def test_rows_that_were_cut_off_are_written_anew(tmp_path, monkeypatch, kept):
    """Within a letter of several bytes, within quotes, at the beginning; and hybrids are those of one go."""
    hybridizer = knowing("Vögel, klein", "Vögel, groß")
    images = torch.randint(256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one = Part(InMemory(images), torch.tensor([0, 1, 0, 1, 0]))
    parents = Parents(one, one, hybridizer.origin.classes, "x")
    write = lambda name: export.write_hybrids(hybridizer, parents, tmp_path / name, Accelerator(), count=70, seed=0)
    write("whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(export, "_merge", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        write("cut")
    rows = sorted((tmp_path / "cut" / export.UNMERGED).iterdir())[-1]
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:-1]) + kept)
    assert write("cut").startswith("70 hybrids, 1 of them made now")
    cut, whole = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("cut", "whole")
    )
    assert cut == whole
