"""Settings: ranges at both ends, all faults in one message, presets and files group by group; and every number of every
recipe's configuration at values that nobody means."""

import io
import math
import pickle
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import Field
from recipe_modules import NAMES, RECIPES, recipe

from hybridgen.configuration import parse, save
from hybridgen.errors import InputError
from hybridgen.settings import (
    NUMBER,
    Count,
    Decay,
    Epoch,
    Few,
    Flat,
    Positive,
    Section,
    Seed,
    Share,
    Weight,
    Whole,
    changed,
    checked,
    flags,
    from_arguments,
    merged,
    plain,
    prefixed,
    settings,
    unchecked,
)
from hybridgen.training.context import RunSettings


@settings
class Numbers:
    """One of each kind."""

    count: Count = 1
    whole: Whole = 0
    few: Few = 1
    seed: Seed = 0
    positive: Positive = 1.0
    weight: Weight = 1.0
    epoch: Epoch = 1.0
    share: Share = 0.5
    decay: Decay = 0.5
    perhaps: Count | None = None
    several: tuple[Count, ...] = (1,)
    own: Annotated[float, Field(gt=0.5, le=1), NUMBER] = 0.9


@settings
class Base:
    """Abstract."""

    rate: Flat[Positive]
    """Learning rate at the start."""
    epochs: Flat[Positive] = 14
    """Passes over the images."""
    clip: Flat[Positive | None] = None
    reduction: Literal["mean", "sum"] = "mean"


@settings
class Method(Base):
    """How it trains."""

    rate = 0.1
    threshold: Share = 0.9
    """Of confidence."""


@settings
class Hybrids:
    """Whose hybrids."""

    threshold: Share = 0.8
    start: Epoch = 1
    path: Path | None = None
    channels: tuple[Count, ...] = (8, 8)


@settings
class Run:
    """A run."""

    out: Path = Path("runs")
    seeds: Count = 1
    method: Method = Method()
    hybrids: Hybrids = Hybrids(start=2)


def refused(make: Any) -> str:
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- ranges --------------------------------------------------------------------------------------------------


TINY = math.ulp(0.0)
INSIDE = {
    "count": (1, 2, 2**31 - 1, 3.0),
    "whole": (0, 1, 2**31 - 1),
    "few": (1, 1024),
    "seed": (0, 1, 2**63 - 1),
    "positive": (TINY, 1e-300, 0.1, 1, 1e6),
    "weight": (0, 0.0, TINY, 1e6),
    "epoch": (0, 0.5, 1e30, math.inf),
    "share": (0, 0.0, 0.5, 1, 1.0),
    "decay": (0, 0.0, 0.999, math.nextafter(1, 0)),
    "perhaps": (None, 1, 2**31 - 1),
    "several": ((), (1,), (1, 2**31 - 1)),
    "own": (math.nextafter(0.5, 1), 0.9, 1),
}
OUTSIDE = {
    "count": (0, -1, 2**31, 1.5, 1e30),
    "whole": (-1, 2**31, 0.5),
    "few": (0, -1, 1025, 1.5),
    "seed": (-1, 2**63, 0.5),
    "positive": (0, 0.0, -TINY, -1, math.nextafter(1e6, math.inf), 1e30),
    "weight": (-TINY, -1, math.nextafter(1e6, math.inf)),
    "epoch": (-TINY, -1, -math.inf),
    "share": (-TINY, -1, math.nextafter(1, 2), 2),
    "decay": (-TINY, -1, 1, 1.0, 2),
    "perhaps": (0, -1, 2**31),
    "several": ((0,), (1, 0), (1, -1), 1, None),
    "own": (0.5, 0, math.nextafter(1, 2)),
}
NEVER = (math.nan, True, False, "many", "nan", [1, [2]], {"a": 1})
"""What is no number of any kind."""


@pytest.mark.parametrize("field", [field.name for field in fields(Numbers)])
def test_ranges_at_both_ends_by_every_way_in(field):
    wrong = (*OUTSIDE[field], *NEVER, *(() if field == "epoch" else (math.inf,)), -math.inf)
    wrong += () if field == "perhaps" else (None,)
    if field == "several":
        wrong = (*wrong, *((value,) for value in (*NEVER, math.inf, None)))
    for value in INSIDE[field]:
        for make in (lambda: Numbers(**{field: value}), lambda: checked(Numbers, {field: value})):  # noqa: B023
            assert getattr(make(), field) == value
            assert changed(Numbers(), {field: value}) == replace(Numbers(), **{field: value}) == make()
    for value in wrong:
        assert field in refused(lambda: Numbers(**{field: value}))  # noqa: B023
        assert field in refused(lambda: checked(Numbers, {field: value}))  # noqa: B023
        assert field in refused(lambda: changed(Numbers(), {field: value}))  # noqa: B023
        assert field in refused(lambda: replace(Numbers(), **{field: value}))  # noqa: B023
        if isinstance(value, float | int) and field != "several":  # of which one alone is several
            assert f"--{field}" in refused(lambda: parse(Numbers, {}, [f"--{field}", f"{value}"]))  # noqa: B023


def test_the_kind_of_a_value_is_the_fields():
    made = checked(Numbers, {"count": 3.0, "positive": 2, "several": [1, 2]})
    assert (type(made.count), type(made.positive), made.several) == (int, float, (1, 2))


# --- messages ------------------------------------------------------------------------------------------------


def test_a_field_of_several_kinds_is_told_once():
    given = {"labels": "1e3", "image_size": "x"}
    assert refused(lambda: checked(RunSettings, given)) == (
        "labels: '1e3' should be a valid integer, unable to parse string as an integer, or should be 'auto'; "
        "image_size: 'x' should be a valid integer, unable to parse string as an integer"
    )


def test_several_faults_are_told_in_one_message_by_their_flags(tmp_path):
    given = ["--seeds", "0", "--rate", "-1", "--method.threshold", "2", "--hybrids.threshold", "nan"]
    said = refused(lambda: parse(Run, {}, [*given, "--hybrids.channels", "8", "0"]))
    assert said == (
        "--seeds: 0 should be greater than or equal to 1; --rate: -1.0 should be greater than 0; "
        "--method.threshold: 2.0 should be less than or equal to 1; --hybrids.threshold: nan should be a finite "
        "number; --hybrids.channels: 0 should be greater than or equal to 1"
    )
    path = tmp_path / "a.yaml"
    path.write_text("seeds: 0\nmethod: {rate: -1, treshold: 0.5, reduction: median}\nhybrids: 3\nseedz: 3\n")
    said = refused(lambda: parse(Run, {}, ["--config", str(path)]))
    assert said.startswith(f"{path}: ") and said.count("; ") == 5
    for words in (
        "seeds: 0 should be greater than or equal to 1", "method.rate: -1 should be greater than 0",
        "unknown field 'method.treshold', there is method.threshold", "method.reduction: 'median' should be 'mean' or",
        "hybrids: 3 should be", "unknown field 'seedz', there is seeds",
    ):  # fmt: skip
        assert words in said, said


def test_constructors_tell_what_is_wrong():
    assert refused(lambda: Method(rate=-1, threshold=3)) == (
        "rate: -1 should be greater than 0; threshold: 3 should be less than or equal to 1"
    )
    assert "unknown field 'ratee'" in refused(lambda: Method(ratee=1))
    assert refused(lambda: Base()) == "rate: is missing"
    assert "method" in refused(lambda: Run(method=3))
    assert "hybrids.threshold" in refused(lambda: Run(hybrids={"threshold": 3}))
    with pytest.raises(TypeError):
        Method(0.1)


# --- what settings are ---------------------------------------------------------------------------------------


def test_a_subclass_gives_another_default_by_assignment_and_the_rest_stays(capsys):
    assert (Method().rate, Method().epochs, Method(epochs=3).epochs) == (0.1, 14, 3)
    assert [field.name for field in fields(Method)] == ["rate", "epochs", "clip", "reduction", "threshold"]
    assert "rate: 0 should be greater than 0" in refused(lambda: Method(rate=0))
    assert flags(Method)["rate"] == "--rate"
    with pytest.raises(SystemExit):
        parse(Run, {}, ["--help"])
    said = capsys.readouterr().out
    assert "Learning rate at the start." in said and "(default: 0.1)" in said and "(default: 14)" in said

    @settings
    class Further(Method):
        epochs = 3

        def doubled(self) -> float:
            return 2 * self.epochs

        @property
        def tripled(self) -> float:
            return 3 * self.epochs

    assert (Further().rate, Further().epochs, Further().doubled(), Further().tripled) == (0.1, 3, 6, 9)
    assert Method().epochs == 14


def test_an_assignment_to_no_field_is_an_error():
    with pytest.raises(TypeError, match=r"Slip\.epoch: no field"):

        @settings
        class Slip(Method):
            epoch = 3


def test_settings_are_frozen_values():
    config = Run()
    for change in (lambda: setattr(config, "seeds", 2), lambda: setattr(config.method, "rate", 2.0)):
        with pytest.raises(FrozenInstanceError):
            change()
    assert config == Run() and hash(config) == hash(Run()) and config != replace(config, seeds=2)
    assert pickle.loads(pickle.dumps(config)) == config


def test_unchecked_settings_are_checked_again_afterwards():
    with unchecked():
        wrong = Numbers(count=-3)
        with unchecked():
            pass
        assert wrong.count == -3 and wrong.whole == 0 and Numbers(count=-4).count == -4
    assert "count" in refused(lambda: Numbers(count=-3))
    with pytest.raises(KeyError), unchecked():
        raise KeyError
    assert "count" in refused(lambda: Numbers(count=-3))


def test_flags_are_flat_where_the_field_says_so():
    assert flags(Run) == {
        "out": "--out", "seeds": "--seeds", "method.rate": "--rate", "method.epochs": "--epochs",
        "method.clip": "--clip", "method.reduction": "--method.reduction", "method.threshold": "--method.threshold",
        "hybrids.threshold": "--hybrids.threshold", "hybrids.start": "--hybrids.start",
        "hybrids.path": "--hybrids.path", "hybrids.channels": "--hybrids.channels",
    }  # fmt: skip


def test_a_prefixed_group_stands_beside_another_of_the_same_fields(capsys):
    """Its flags bear its name, and all else is the group's: ranges, defaults, words of help."""
    Second = prefixed(Method)

    @settings
    class Both:
        """Of two."""

        method: Method = Method()
        second: Second = Second(rate=0.7)

    assert flags(Both) == {place: flag for place, flag in flags(Run).items() if place.startswith("method.")} | {
        f"second.{field.name}": f"--second.{field.name}" for field in fields(Method)
    }
    assert issubclass(Second, Method) and plain(Second()) == plain(Method())
    made = parse(Both, {"a": {"second": {"rate": 0.3}}}, ["--preset", "a", "--rate", "0.5", "--second.epochs", "9"])
    assert (made.method.rate, made.second.rate, made.second.epochs) == (0.5, 0.3, 9) and made.method.epochs != 9
    assert "rate: -1" in refused(lambda: Second(rate=-1))
    assert "--second.rate: -1" in refused(lambda: parse(Both, {}, ["--second.rate", "-1"]))
    with pytest.raises(SystemExit):
        parse(Both, {}, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("Learning rate at the start. (default: 0.1)") == 1 == said.count("at the start. (default: 0.7)")


def test_plain_values_merge_group_by_group():
    values = plain(Run(hybrids=Hybrids(path=Path("a"), channels=(1, 2))))
    assert values["out"] == "runs" and values["hybrids"] == {
        "threshold": 0.8, "start": 1, "path": "a", "channels": [1, 2]}  # fmt: skip
    changes = {"seeds": 3, "method": {"rate": 0.5}, "hybrids": {"channels": (4,)}}
    before, given = plain(Run()), plain(changes)
    together = merged(before, changes)
    assert before == plain(Run()) and plain(changes) == given  # neither is written to
    assert together == before | {
        "seeds": 3,
        "method": before["method"] | {"rate": 0.5},
        "hybrids": before["hybrids"] | {"channels": (4,)},
    }
    assert merged({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}} and merged({"a": {"b": 2}}, {"a": 1}) == {"a": 1}
    made = changed(Run(), changes)
    assert made == Run(seeds=3, method=Method(rate=0.5), hybrids=Hybrids(start=2, channels=(4,)))


def test_presets_files_and_flags_change_their_own_fields_of_a_group(tmp_path):
    presets = {"a": {"method": {"rate": 0.5, "threshold": 0.3}, "hybrids": {"start": 7}}}
    (tmp_path / "b.yaml").write_text("method: {threshold: 0.2}\nhybrids: {path: x/y}\n")
    given = ["--preset", "a", "--config", str(tmp_path / "b.yaml"), "--hybrids.threshold", "0.1"]
    assert parse(Run, presets, given) == Run(
        method=Method(rate=0.5, threshold=0.2), hybrids=Hybrids(threshold=0.1, start=7, path=Path("x/y"))
    )
    assert "rate: -1" in refused(lambda: parse(Run, {"a": {"method": {"rate": -1}}}, ["--preset", "a"]))


# --- every recipe --------------------------------------------------------------------------------------------


def leaves(kind: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """Place and type of every field, those of groups as `method.rate`."""
    for field in fields(kind):
        if is_dataclass(field.type):
            yield from leaves(field.type, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", field.type


def holds(kind: Any, what: type) -> bool:
    return kind is what or any(holds(each, what) for each in get_args(kind))


@pytest.mark.parametrize("name", NAMES)
def test_every_default_and_preset_is_read_back_from_its_file(name, tmp_path):
    of = recipe(name)
    for preset in (None, *of.PRESETS):
        given = [] if preset is None else ["--preset", preset]
        config = parse(of.Config, of.PRESETS, given)
        assert config == changed(of.Config(), {} if preset is None else of.PRESETS[preset])
        assert checked(of.Config, plain(config)) == config
        save(config, tmp_path / "config.yaml")
        again = parse(of.Config, of.PRESETS, ["--config", str(tmp_path / "config.yaml")])
        assert again == config and plain(again) == plain(config) and type(again.out) is type(config.out)
    assert "smoke" in of.PRESETS or name == "adain"


ENDLESS = {name: {"method.alpha", "method.root"} for name in ("mixmo", "mixshare")} | {"mixvit": {"method.alpha"}}
"""Fields for which the paper has a name for infinity: MIMO, and losses that all weigh the same."""
ZERO_HAS_NO_MEANING = {
    "image_size", "labels", "threads", "training.rate_batch", "record_every", "evaluate_every", "save_every", "seeds",
    *(f"method.{field}" for field in (
        "epochs", "rate", "rate_epochs", "clip", "labelled_batch", "unlabelled_batch", "cutout", "guesses",
        "temperature", "alpha", "batch", "momentum", "perception_steps", "perception_batch", "perception_rate",
        "discriminator_rate", "nonsemantic_channels", "generator_channels", "discriminator_width", "snapshot_every",
        "alignment_window", "gaussian_sigmas", "penalty_every", "inputs", "root", "repetitions",
        "fade",
    )),
    *(f"training.{field}" for field in ("width", "epochs", "batch", "rate", "clip", "crop", "views")),
    *(f"samosa.{field}" for field in (
        "rate", "rate_epochs", "clip", "cycles", "hybrids_per_image", "snapshot_every",
    )),
    *(f"generator.{field}" for field in (
        "epochs", "rate", "rate_epochs", "clip", "labelled_batch", "unlabelled_batch", "discriminator_rate",
        "nonsemantic_channels", "generator_channels", "discriminator_width", "snapshot_every", "penalty_every",
    )),
    "hybrids.alpha", "hybrids.copies", "oracle.steps", "rounds",
}  # fmt: skip
"""Places of the numbers that have to be above 0."""

EPOCHS = {
    "hybrids.start", "hybrids.stop", "samosa.start", "samosa.stop", "training.warmup", "training.decay_at",
    *(f"{group}.{field}" for group in ("method", "generator") for field in (
        "semantic_from", "semantic_ramp", "nonsemantic_from",
    )),
    "method.unsupervised_from", "method.unsupervised_ramp",
}  # fmt: skip
"""Places of those that may be infinite."""


@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_a_recipe_takes_what_nobody_means(name):
    """All at once, since a message tells all faults."""
    of = recipe(name)
    flag, numbers = flags(of.Config), [(place, kind) for place, kind in leaves(of.Config) if holds(kind, float)]
    whole = [(place, kind) for place, kind in leaves(of.Config) if holds(kind, int) and not holds(kind, float)]
    reals, wholes = [place for place, _ in numbers], [place for place, _ in whole]
    assert len(wholes) >= 2 and (len(reals) > 3 or name.endswith("ablation"))

    def told(places: list[str], value: str) -> set[str]:
        """The places that a configuration with this value everywhere is refused for; none if it is taken."""
        words = [word for place in places for word in (flag[place], value)]
        try:
            made = parse(of.Config, of.PRESETS, words)
        except InputError as error:
            assert "\n" not in str(error)
            return {place for place in places if f"{flag[place]}: " in str(error)}
        assert isinstance(made, of.Config)
        return set()

    assert told(reals, "-1") == told(reals, "nan") == told(reals, "-inf") == set(reals)
    assert told(reals, "inf") == told(reals, "1e30") == set(reals) - EPOCHS - ENDLESS.get(name, set())
    assert told(wholes, "-1") == told(wholes, str(2**70)) == set(wholes)
    assert told(wholes, "0") | told(reals, "0") == ZERO_HAS_NO_MEANING & {*reals, *wholes}


def test_no_number_of_any_recipe_is_a_truth_value_or_a_word():
    """Once for every field by a file, and for one field of each type by its flag."""
    seen, kinds = set(), set()
    for name in NAMES:
        of = recipe(name)
        for place, kind in leaves(of.Config):
            if not (holds(kind, int) or holds(kind, float)) or (place, str(kind)) in seen:
                continue
            seen.add((place, str(kind)))
            *groups, field = place.split(".")
            for value in (True, math.nan, "word"):
                content: Any = {field: [value] if holds(kind, tuple) or "tuple" in str(kind) else value}
                for group in reversed(groups):
                    content = {group: content}
                said = refused(lambda: checked(of.Config, merged(plain(of.Config()), content)))  # noqa: B023
                assert place in said
            for word in () if str(kind) in kinds else ("word", "1e400x", "0x"):
                assert flags(of.Config)[place] in refused(
                    lambda: parse(of.Config, of.PRESETS, [flags(of.Config)[place], word])  # noqa: B023
                )
            kinds.add(str(kind))
    assert len(seen) > 80


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_own_examples_are_taken(name):
    """The command lines in the documentation of a recipe, which use flags and presets that there are."""
    import shlex

    text = recipe(name).__doc__.replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith(("accelerate launch recipes/", "python recipes/"))]
    assert any(f"recipes/{name}.py" in line for line in lines)
    for line in lines:
        words = shlex.split(line)
        script = next(word for word in words if word.endswith(".py"))
        of = recipe(Path(script).stem)
        parse(of.Config, of.PRESETS, words[words.index(script) + 1 :])
        assert (RECIPES / Path(script).name).exists()


# --- Help --------------------------------------------------------------------------------------------------------


@settings
class Sectioned:
    """Some settings."""

    alpha: Annotated[float, Section("how much")] = 1.0
    """The amount, α."""
    beta: int = 2
    """Another --alpha."""
    place: Annotated[Path, Section("where to")] = Path("there")
    """A folder, of which
    more is said here.

    And here."""


@pytest.mark.parametrize(("encoding", "first", "edge"), [("utf-8", "╭─ how much ─", "│"), ("ascii", "how much", " ")])
def test_help_has_sections(encoding, first, edge, monkeypatch):
    """On a screen that knows frames, and on one that knows ASCII alone."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "__stdout__", screen)
    with pytest.raises(SystemExit):
        from_arguments(Sectioned, ["--help"])
    screen.flush()
    lines = screen.buffer.getvalue().decode(encoding).splitlines()
    at = [place for start in (f"{edge} -h", first, f"{edge} --alpha", f"{edge} --beta", f"{edge} --place")
          for place, line in enumerate(lines) if line.startswith(start)]  # fmt: skip
    assert len(at) == 5 and at == sorted(at)
    (second,) = [place for place, line in enumerate(lines) if "where to" in line]
    assert any("A folder, of which more is said here." in line for line in lines)
    assert not any("And here." in line and "said" in line for line in lines)
    assert at[3] < second == at[4] - 1 and len({len(line) for line in lines if line.startswith(("╭", "╰"))}) <= 1
