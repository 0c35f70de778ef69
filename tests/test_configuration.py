"""Defaults, preset, file and command line, in this order; every bad word is one line."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

import pytest

from hybridgen.configuration import launch, load, parse, save
from hybridgen.errors import PATIENCE, InputError, exit_codes
from hybridgen.settings import NUMBER, Epoch, plain, settings


@settings
class Config:
    """Train something small."""

    rate: float = 0.1
    """Learning rate at the start."""
    steps: Annotated[int, NUMBER] = 10
    clip: float | None = None
    channels: tuple[int, ...] = (8, 16)
    split: Path | None = None
    out: Path = Path("runs/it")
    kind: Literal["mean", "sum"] = "mean"
    stop: Epoch = 12
    data: str = "digits-m"
    resume: bool = False
    keep: bool = True


PRESETS = {"smoke": dict(rate=0.5, steps=2), "paper-a": dict(steps=1000, channels=(64,))}


def parsed(*arguments: str) -> Config:
    return parse(Config, PRESETS, list(arguments))


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "config.yaml").write_text(text)
        return str(tmp_path / "config.yaml")

    return write


# --- what wins -----------------------------------------------------------------------------------------------


def test_nothing_given_is_the_default():
    assert parsed() == Config()


def test_a_preset_wins_over_defaults_a_file_over_it_and_the_command_line_over_all(file):
    path = file("steps: 3\nclip: 1.5\n")
    assert parsed("--preset", "smoke") == Config(rate=0.5, steps=2)
    assert parsed("--preset", "smoke", "--config", path) == Config(rate=0.5, steps=3, clip=1.5)
    assert parsed("--preset", "smoke", "--config", path, "--clip", "7") == Config(rate=0.5, steps=3, clip=7.0)


def test_the_order_on_the_command_line_does_not_matter(file):
    path = file("steps: 3\n")
    expected = Config(rate=0.5, steps=4)
    assert parsed("--steps", "4", f"--config={path}", "--preset=smoke") == expected
    assert parsed("--preset", "smoke", "--steps", "4", "--config", path) == expected
    odd = Path(path).rename(Path(path).with_name("a=b.yaml"))
    assert parsed("--steps", "4", f"--config={odd}", "--preset", "smoke") == expected


def test_every_kind_of_value():
    assert parsed(
        "--rate", "1e-3", "--clip", "2", "--channels", "1", "2", "3", "--split", "a/b.json", "--kind", "sum",
        "--resume", "--no-keep", "--data", "folder:some where",
    ) == Config(
        rate=1e-3, clip=2.0, channels=(1, 2, 3), split=Path("a/b.json"), kind="sum", resume=True, keep=False,
        data="folder:some where",
    )  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(rate=1e-12, clip=3, channels=(1,), split=Path("x y/z.json"), resume=True, keep=False, kind="sum"),
        Config(stop=float("inf"), channels=(), data="none"),
        Config(rate=-0.5, steps=-3, data="-dash"),
    ],
)
def test_a_saved_configuration_is_read_as_itself(tmp_path, config):
    save(config, tmp_path / "config.yaml")
    assert parsed("--config", str(tmp_path / "config.yaml")) == config
    assert load(tmp_path / "config.yaml") == plain(config)


@settings
class Part:
    """A group of settings."""

    epochs: float | None = None
    rate: float | None = None
    name: str = "auto:x"


@settings
class Whole:
    """Some settings, and two groups of them."""

    labels: Literal["auto"] | int = "auto"
    method: Part = Part()
    generator: Part = Part(rate=0.5)


def test_behind_what_is_left_open_stands_what_was_chosen(tmp_path):
    chosen = {
        "labels": 100, "method.epochs": 14.0, "method.rate": 1 / 30, "method.name": "y", "generator.rate": 3.0,
        "generator.epochs": None, "epochs": 7,
    }  # fmt: skip
    save(Whole(), tmp_path / "config.yaml", chosen)
    assert (tmp_path / "config.yaml").read_text().splitlines() == [
        "labels: auto  # 100",
        "method:", "  epochs: null  # 14", "  rate: null  # 0.0333333", "  name: auto:x",
        "generator:", "  epochs: null", "  rate: 0.5", "  name: auto:x",
    ]  # fmt: skip
    assert load(tmp_path / "config.yaml") == plain(Whole())


def test_fields_stand_in_their_file_as_they_do_in_the_code(tmp_path):
    save(Config(), tmp_path / "config.yaml")
    names = [line.split(":")[0] for line in (tmp_path / "config.yaml").read_text().splitlines() if line[:1].isalpha()]
    assert names == [field.name for field in fields(Config)] != sorted(names)


def test_plain_values():
    assert plain(Config(split=Path("a"), channels=(1, 2))) == {
        "rate": 0.1, "steps": 10, "clip": None, "channels": [1, 2], "split": "a", "out": "runs/it", "kind": "mean",
        "stop": 12.0, "data": "digits-m", "resume": False, "keep": True,
    }  # fmt: skip


# --- what is refused -----------------------------------------------------------------------------------------


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        parsed(*arguments)
    message = str(caught.value)
    assert "\n" not in message and not set(message) & set("│╭╮╰╯─\x1b") and "---" not in message
    return message


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--stepz", "3"], ["--stepz"]),
        (["stray"], ["stray"]),
        (["--steps", "three"], ["--steps", "three"]),
        (["--steps", "1.5"], ["--steps", "1.5"]),
        (["--rate", "high"], ["--rate", "high"]),
        (["--kind", "median"], ["--kind", "median"]),
        (["--channels", "1", "x"], ["--channels", "x"]),
        (["--steps"], ["--steps"]),
        (["--preset", "large"], ["--preset", "'large'", "smoke, paper-a"]),
        (["--preset"], ["--preset"]),
        (["--config"], ["--config"]),
    ],
)
def test_a_bad_argument_is_named_in_one_line(arguments, names):
    message = refused(*arguments)
    for name in names:
        assert name in message, message


@pytest.mark.parametrize(
    "text, names",
    [
        ("stepz: 3\n", ["unknown field 'stepz', there is steps"]),
        ("steps: three\n", ["steps: ", "three"]),
        ("steps: 1.5\n", ["steps: ", "1.5"]),
        ("steps: true\n", ["steps: True should be a number"]),
        ("steps: null\n", ["steps: None should"]),
        ("resume: maybe\n", ["maybe"]),
        ("channels: [1, x]\n", ["channels.1: 'x'"]),
        ("channels:\n  a: 1\n", ["channels: "]),
        ("- 1\n- 2\n", ["mapping"]),
        ("", ["mapping"]),
        ("steps: [1\n", ["not YAML"]),
        ("steps: 2024-02-30\n", ["not YAML (day is out of range for month)"]),
        ("steps: !!python/object/apply:os.getcwd []\n", ["not YAML"]),
    ],
)
def test_a_bad_file_is_named_with_its_field_in_one_line(file, text, names):
    path = file(text)
    message = refused("--config", path)
    for name in [path, *names]:
        assert name in message, message


def test_a_file_that_cannot_be_read(tmp_path):
    assert str(tmp_path / "none.yaml") in refused("--config", str(tmp_path / "none.yaml"))
    assert str(tmp_path) in refused("--config", str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "not YAML" in refused("--config", str(tmp_path / "binary"))


# --- help and exit codes -------------------------------------------------------------------------------------


def test_help_names_fields_their_meaning_defaults_and_presets(capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed("--preset", "smoke", "--help")
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for words in ("Train something small.", "smoke, paper-a", "--rate", "Learning rate at the start.", "0.5"):
        assert words in said


def ended(error: BaseException | None) -> int | None:
    with pytest.raises(SystemExit) as stopped, exit_codes():
        raise error
    return stopped.value.code


def test_bad_input_is_one_line_and_code_2_a_diverged_loss_code_1(capsys):
    assert ended(InputError("labels = 0: too few")) == 2
    assert capsys.readouterr().err == "error: labels = 0: too few\n"
    assert ended(FloatingPointError("loss 'a' is not finite at step 3")) == 1
    assert capsys.readouterr().err == "error: loss 'a' is not finite at step 3\n"


class OutOfMemoryError(RuntimeError):
    """Of torch, by its name."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "no more is to be had"),
        (MemoryError("of numpy"), "of numpy"),
        (OutOfMemoryError("CUDA out of memory. Tried\nto allocate. " + 300 * "x"), "CUDA out of memory. Tried to"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), "you tried to"),
    ],
)
def test_a_lack_of_memory_is_one_line_and_code_1(capsys, error, said):
    assert ended(error) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"error: not enough memory: {said}") and line.count("\n") == 1 and len(line) < 250


def test_any_other_error_of_torch_passes():
    with pytest.raises(RuntimeError, match="size mismatch"), exit_codes():
        raise RuntimeError("size mismatch")


@pytest.mark.parametrize(
    ("local_rank", "world_size", "waited", "process"),
    [("0", "4", [], ""), ("1", "4", [PATIENCE], " (process 3)"), ("1", "1", [], "")],
)
def test_the_first_process_of_a_machine_speaks_at_once_and_others_only_if_they_outlive_it(
    monkeypatch, capsys, local_rank, world_size, waited, process
):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    for name, value in (("LOCAL_RANK", local_rank), ("WORLD_SIZE", world_size), ("RANK", "3")):
        monkeypatch.setenv(name, value)
    assert ended(InputError("a.png: not a readable image")) == 2
    assert capsys.readouterr().err == f"error: a.png: not a readable image{process}\n"
    assert slept == waited


def test_other_errors_pass(capsys):
    with pytest.raises(KeyError), exit_codes():
        raise KeyError("a defect of ours")
    assert ended(SystemExit(143)) == 143
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
    with exit_codes():
        pass


CYCLE = """
from hybridgen.errors import exit_codes
class Cycle:
    def __init__(self):
        self.own = self
    def __del__(self):
        print("searched for garbage")
with exit_codes():
    kept = Cycle()
"""


@pytest.mark.parametrize(("script", "said"), [(CYCLE, ""), (CYCLE.replace("exit_codes()", "open('/dev/null')"), "s")])
def test_no_garbage_is_searched_for_at_the_end_of_a_process(script, said):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout[:1] == said and done.stderr == ""


def test_launch_parses_and_runs(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("sys.argv", ["recipe.py", "--preset", "smoke", "--steps", "7"])
    launch(seen.append, Config, PRESETS)
    assert seen == [Config(rate=0.5, steps=7)]
    monkeypatch.setattr("sys.argv", ["recipe.py", "--stepz", "7"])
    with pytest.raises(SystemExit) as stopped:
        launch(seen.append, Config, PRESETS)
    assert stopped.value.code == 2 and len(seen) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "--stepz" in said
