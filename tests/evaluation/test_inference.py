"""Every inference of one transformer, against the thesis's table 4.6 and counts by hand."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hybridgen.data.datasets import Part
from hybridgen.data.sources import InMemory
from hybridgen.evaluation import inference as module
from hybridgen.evaluation.inference import ONE, TITLES, answers_of, costs, estimated_ratio, inferences, study
from hybridgen.evaluation.transfer import wilson
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.networks.multi_input_transformer import MultiInputTransformer
from hybridgen.networks.registry import make_network
from hybridgen.types import InputError

INFERENCES = tuple(TITLES)[1:]


def classifier(name: str = "convit-12-3-1-patch4", inputs: int = 2, **changes: str) -> Classifier:
    torch.manual_seed(0)
    how = dict(source="embedding", place="late", encoders="one", inference="separate", ensemble="logits") | changes
    made = MultiInputTransformer(make_network(name, 5, image_size=16), inputs=inputs, **how)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return Classifier(made, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).eval()


def test_the_estimate_is_the_theses():
    """Tables 4.6 and 4.1, with two inputs and five feature blocks; but that without sources, where all passes are the
    same, there is one."""
    late = dict.fromkeys(INFERENCES, 1.0) | {"separate": 1.1, "together": 2.0}
    early = late | {"separate": 2.0}
    for changes, expected in (
        ({}, late), ({"source": "encoding"}, late), ({"place": "early"}, early),
        ({"source": "encoding", "place": "early"}, early), ({"source": "none", "encoders": "each"}, early),
        ({"source": "none"}, late | {"separate": 1.0}),
    ):  # fmt: skip
        made = classifier("vit-12-3-5-patch8", **changes).network
        found = {how: round(estimated_ratio(made.inferring(how)), 1) for how in INFERENCES}
        assert found == expected, changes
    deeper = classifier("vit-12-3-8-patch8", inputs=3).network  # (L + M/2) / (L + 1/2)
    assert estimated_ratio(deeper) == pytest.approx((8 + 1.5) / 8.5)


@pytest.mark.parametrize("changes", [{"source": "encoding"}, {"source": "none", "encoders": "each"}])
@torch.no_grad()
def test_inferences_are_of_the_same_parameters_as_networks_made_for_them(changes):
    made = classifier(**changes)
    every, images = inferences(made), torch.rand(3, 3, 16, 16)
    assert tuple(every) == tuple(TITLES)
    for how in INFERENCES:
        other = classifier(inference=how, **changes)
        other.load_state_dict(made.state_dict())
        assert torch.equal(every[how].members(images), other.members(images)), how
        assert every[how].network.num_features == other.network.num_features
        mine = {id(parameter) for parameter in every[how].parameters()}
        assert mine == {id(parameter) for parameter in made.parameters()}
    assert made.network.inference == "separate" and every[ONE].network.head is made.network.heads[0]
    with torch.random.fork_rng():
        plain = make_network("convit-12-3-1-patch4", 5, image_size=16)
    plain.load_state_dict(every[ONE].network.state_dict())
    torch.testing.assert_close(every[ONE](images), plain.eval()(made.normalize(images)))


def test_accuracies_are_counts(monkeypatch):
    """Of the middle of some of the images, one by one."""
    every = inferences(classifier())
    pixels = torch.randint(256, (12, 3, 20, 20), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    part, chosen = Part(InMemory(pixels), torch.arange(12) % 5), [0, 2, 3, 5, 7, 8, 11]
    found = answers_of(every, part, chosen, Accelerator(cpu=True), crop=16)
    assert tuple(found) == INFERENCES
    for how, of in found.items():
        right = []
        for index in chosen:
            with torch.no_grad():
                members = every[how].members(pixels[index : index + 1, :, 2:18, 2:18] / 255)[:, 0].numpy()
            right.append([row.argmax() == index % 5 for row in (members.mean(axis=0), *members)])
        ensemble, *each = np.mean(right, axis=0)
        assert of.accuracy == wilson(ensemble, 7) and of.members == pytest.approx(each)
        assert len(of.members) == (1 if how == "single" else 2)


def test_times_are_medians_of_rounds_by_turns_and_all_stands_in_table_and_json(monkeypatch):
    """The first round warms up; each forward takes what the clock says. Last, operations are counted."""
    every, clock, seen = inferences(classifier()), [0.0], []
    monkeypatch.setattr(module, "now", lambda device: clock[0])
    for place, (how, each) in enumerate(every.items(), start=1):
        taken = iter([100.0, place * 0.4, place * 0.1, place * 0.2, 0.0])
        each.register_forward_hook(
            lambda *_, how=how, taken=taken: (seen.append(how), clock.append(clock.pop() + next(taken)))[2:] or None
        )
    found = costs(every, torch.rand(4, 3, 16, 16), rounds=3)
    assert seen == [*TITLES] * 5
    assert [of.seconds for of in found.values()] == pytest.approx([place * 0.2 / 4 for place in range(1, 7)])
    assert found[ONE].flops < found["single"].flops < found["separate"].flops < found["together"].flops

    half = module.Answers(wilson(0.5, 40), (0.25, 0.5))
    finding = study(found, dict.fromkeys(INFERENCES, half), "separate")
    values = json.loads(json.dumps(finding.values, allow_nan=False))
    assert values["inference_of_the_run"] == "separate"
    separate = values["inferences"]["separate"]
    assert separate["flops_ratio"] == pytest.approx(found["separate"].flops / found[ONE].flops)
    assert separate["seconds_ratio"] == pytest.approx(2) and separate["estimated_ratio"] == pytest.approx(2 / 1.5)
    assert (separate["accuracy"], separate["member_accuracies"]) == (0.5, [0.25, 0.5])
    assert "accuracy" not in values["inferences"][ONE]
    line = next(line for line in finding.table.splitlines() if line.startswith("Separate (the run's)"))
    assert "50.0%" in line and "25.0 50.0" in line and line.endswith("2.00") and "1.333" in line
    of, spent = found["separate"], 2 * 0.2 / 4
    assert (separate["flops"], separate["seconds_per_image"]) == (of.flops, pytest.approx(spent))
    assert separate["accuracy_interval"] == list(half.accuracy[1:])
    ratio = of.flops / found[ONE].flops
    assert line.split()[-5:] == [f"{of.flops / 1e6:.2f}", f"{ratio:.3f}", "1.333", "100.000", "2.00"]

    assert len(study(found, {}, None).figure.axes) == 2
    titles = ["accuracy, %", "MFLOPs an image", "ms an image"]
    assert [axis.get_title() for axis in finding.figure.axes] == titles
    bars = [
        dict(zip((text.get_text() for text in axis.get_yticklabels()), axis.patches, strict=True))
        for axis in finding.figure.axes
    ]
    assert [each["Separate"].get_width() for each in bars] == pytest.approx([50, of.flops / 1e6, 1000 * spent])
    told = [[text.get_text() for text in axis.texts] for axis in finding.figure.axes]
    assert told[0] == ["50.0 (members 37.5)"] * 5 and [each[1] for each in told[1:]] == [f"{ratio:.2f}×", "2.00×"]


def test_other_networks_are_one_error():
    with pytest.raises(InputError, match="network: of one input, which has one inference"):
        inferences(classifier(inputs=1))
    statistics = dict(mean=(0.5,) * 3, std=(0.25,) * 3)
    one, other = (make_network("wrn-10-1", 5) for _ in range(2))
    for plain in (Classifier(one, **statistics), MultiInputClassifier([one, other], **statistics, ensemble="logits")):
        with pytest.raises(InputError, match="network: no transformer of several inputs"):
            inferences(plain)
