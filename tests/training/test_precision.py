"""Which precision a run takes and records, and what stays float32 in bf16."""

import copy
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from recipe_modules import recipe
from torch.utils._python_dispatch import TorchDispatchMode

from hybridgen.configuration import launch
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.methods import adain, fixmatch, hybrids, mean_teacher, mixing, mixmatch, samosa, scimix, supervised
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.tables.cost import noise
from hybridgen.training import engine
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.engine import make_accelerator, precision_of, taken_precision
from hybridgen.training.objective import weighted
from hybridgen.training.plan import Plan
from hybridgen.training.record import claim
from hybridgen.training.scores import Scored
from hybridgen.training.train import train
from hybridgen.types import InputError

WITH, WITHOUT, GPU = ("this CPU", "avx512_bf16"), ("this CPU", ""), ("a GPU", "bf16")


@pytest.fixture
def processor(monkeypatch):
    """Sets what the look at the processor finds; accelerate's state, which can be set once, is as it was afterwards."""
    kept = dict(AcceleratorState._shared_state)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)

    def find(processor: str, unit: str) -> None:
        monkeypatch.setattr(engine, "look_for_bf16", lambda: (processor, unit))
        AcceleratorState._shared_state.clear()

    yield find
    AcceleratorState._shared_state.clear()
    AcceleratorState._shared_state.update(kept)


# --- what is taken -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "asked", "launched", "taken", "why"),
    [
        (WITH, "auto", None, "bf16", "this CPU has avx512_bf16"),
        (WITH, "auto", "no", "bf16", "this CPU has avx512_bf16"),  # what accelerate launch says if nobody asks
        (WITHOUT, "auto", None, "fp32", "this CPU has no bf16"),
        (GPU, "auto", None, "bf16", "a GPU has bf16"),
        (WITH, "fp32", None, "fp32", "--precision"),
        (WITH, "bf16", "no", "bf16", "--precision"),
        (GPU, "auto", "fp16", "fp16", "accelerate launch"),
        (("a GPU", ""), "fp16", "fp16", "fp16", "--precision"),
        (WITH, "auto", "bf16", "bf16", "accelerate launch"),
    ],
)
def test_what_is_taken(processor, monkeypatch, found, asked, launched, taken, why):
    processor(*found)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert taken_precision(asked).precision == taken
    assert why in taken_precision(asked).why


@pytest.mark.parametrize(
    ("found", "asked", "launched", "said"),
    [
        (WITHOUT, "bf16", None, r"precision: bf16, but this CPU has no bf16 .*avx512_bf16.*fp32"),
        (WITHOUT, "auto", "bf16", r"precision: bf16, but this CPU has no bf16"),
        (("a GPU", ""), "bf16", None, r"precision: bf16, but a GPU has no bf16"),
        (WITH, "fp16", None, r"precision: fp16 is of GPUs; this CPU has fp32 and bf16$"),
        (WITHOUT, "auto", "fp16", r"precision: fp16 is of GPUs; this CPU has fp32$"),
        (GPU, "auto", "fp8", r"precision: fp8, of accelerate launch, is none of fp32, bf16, fp16"),
        (GPU, "fp32", "bf16", r"precision: fp32, but accelerate launch has --mixed_precision bf16; leave .* bf16$"),
        (GPU, "bf16", "fp16", r"precision: bf16, but accelerate launch has --mixed_precision fp16; leave out one"),
    ],
)
def test_what_cannot_be_taken_is_one_line(processor, monkeypatch, found, asked, launched, said):
    processor(*found)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(InputError, match=said) as caught:
        taken_precision(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="looks at a CPU")
def test_the_look_at_a_cpu_sees_what_the_system_sees(monkeypatch):
    monkeypatch.undo()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        flags = set(re.findall(r"\b(?:amx_bf16|avx512_bf16)\b", cpuinfo.read_text()))
        processor, unit = LOOK()
        assert processor == "this CPU" and (unit in flags if flags else unit == "")
    for there, unit in (
        ({"amx_bf16": True, "avx512_bf16": True}, "amx_bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "avx512_bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, ""),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda there=there: there)
        assert LOOK() == ("this CPU", unit)


LOOK = engine.look_for_bf16
"""Before a fixture of all tests replaces it."""


@pytest.mark.parametrize("there", [True, False])
def test_the_look_at_a_gpu_takes_no_emulation(monkeypatch, there):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or there)
    assert LOOK() == ("a GPU", "bf16" if there else "")


def test_the_accelerator_computes_in_it(processor):
    for found, asked, name in ((WITH, "auto", "bf16"), (WITH, "fp32", "no"), (WITHOUT, "auto", "no")):
        processor(*found)
        accelerator = make_accelerator(precision=asked, threads=1)
        assert accelerator.mixed_precision == name
        assert precision_of(accelerator) == {"no": "fp32"}.get(name, name)


@pytest.mark.parametrize("name", ["fixmatch", "scimix", "recursivemix", "adain"])
def test_bf16_where_there_is_none_is_one_line_and_exit_code_2(processor, monkeypatch, capsys, tmp_path, name):
    processor(*WITHOUT)
    module = recipe(name)
    monkeypatch.setattr("sys.argv", [name, "--precision", "bf16", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        launch(module.main, module.Config, module.PRESETS)
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and not (tmp_path / "run").exists()
    assert said.err.startswith("error: precision: bf16") and said.err.count("\n") == 1


# --- part of the run's identity ------------------------------------------------------------------------------


def test_what_was_taken_is_recorded_and_said_once(processor, capsys, tmp_path):
    processor(*WITH)
    asked = RunSettings(out=tmp_path / "run")
    claim(asked.out, asked, Accelerator(cpu=True, mixed_precision="bf16"), resume=False)
    said = capsys.readouterr().out
    assert said == "precision: bf16, for this CPU has avx512_bf16\n"
    assert yaml.safe_load((asked.out / "config.yaml").read_text())["precision"] == "bf16"

    # Of a part of a larger run, and where it was asked for, nothing is said
    claim(asked.out / "part", asked, Accelerator(cpu=True, mixed_precision="bf16"), resume=False, fresh_ok=True)
    explicit = replace(asked, out=tmp_path / "other", precision="bf16")
    claim(explicit.out, explicit, Accelerator(cpu=True, mixed_precision="bf16"), resume=False)
    assert capsys.readouterr().out == ""
    for folder in (asked.out / "part", explicit.out):
        assert yaml.safe_load((folder / "config.yaml").read_text())["precision"] == "bf16"


def test_a_run_goes_on_in_the_precision_that_it_took(processor, tmp_path):
    """Whether that was asked for or not; on a machine where auto takes another it has to be."""
    processor(*WITH)
    asked = RunSettings(out=tmp_path, resume=True)
    bf16 = make_accelerator(threads=1)
    claim(tmp_path, replace(asked, resume=False), bf16, resume=False)
    claim(tmp_path, asked, bf16, resume=True)
    claim(tmp_path, replace(asked, precision="bf16"), bf16, resume=True)
    before = (tmp_path / "config.yaml").read_text()
    processor(*WITHOUT)
    fp32 = make_accelerator(threads=1)
    for given in ("auto", "fp32"):
        with pytest.raises(InputError, match=r"resume: .* has precision = 'bf16', this run 'fp32'$"):
            claim(tmp_path, replace(asked, precision=given), fp32, resume=True)
    assert (tmp_path / "config.yaml").read_text() == before


# --- plans to compute with -----------------------------------------------------------------------------------


SMALL = dict(labelled_batch=4, unlabelled_batch=4, epochs=2.0)
STAGE_1 = dict(
    **SMALL, generator_channels=(8, 8), discriminator_width=0.25, nonsemantic_channels=2, penalty_every=2,
    weight_gradient_penalty=1.0, weight_adversarial_features=1.0, semantic_from=0.0, nonsemantic_from=0.0,
)  # fmt: skip
LABELLED = TrainingSettings(network="wrn-10-1", batch=6, epochs=2.0, warmup=0.0)


def hybridizer() -> Hybridizer:
    torch.manual_seed(0)
    shape = Architecture(
        image_size=16, classes=3, network="leaky-wrn-10-1", nonsemantic_channels=2, generator_channels=(4, 4)
    )
    return Hybridizer(SemanticAutoencoder(shape), Origin("none", "f", "0", ("a", "b", "c")))


def of_scimix(**changes):
    return lambda context: scimix.plan(scimix.Settings(**(STAGE_1 | changes)), context, 0)[0]


def of_samosa(context: Context) -> Plan:
    of = mean_teacher.Settings(**SMALL)
    made = samosa.networks(of, context, 0, heads=2)
    base = mean_teacher.plan(of, context, 0, classifier=made.watched)
    return samosa.with_samosa(base, made, samosa.Settings(start=0.5, stop=1.5), 0)


def of_adain(context: Context, *, perception: bool) -> Plan:
    settings = adain.Settings(network="leaky-wrn-10-1", batch=6, perception_batch=6)
    network = adain.network(settings, context, 0)
    first = adain.perception_plan(settings, context, network, 0)
    return first if perception else adain.plan(settings, context, network, 0)[0]


def with_hybrids(module, use, settings):
    def make(context: Context) -> Plan:
        base = module.plan(settings, context, 0)
        how = hybrids.Settings(use=use, copies=1, start=0.0, stop=9.0, keep_consistent=False, threshold=0.0)
        return hybrids.with_hybrids(base, hybridizer(), how)

    return make


PLANS = {
    "fixmatch": with_hybrids(fixmatch, "contradict", fixmatch.Settings(**SMALL, threshold=0.0)),
    "mean teacher": with_hybrids(mean_teacher, "pseudo-label", mean_teacher.Settings(**SMALL)),
    "mixmatch": with_hybrids(mixmatch, "consistency", mixmatch.Settings(**SMALL)),
    "supervised": with_hybrids(supervised, "labelled", supervised.Settings(**SMALL)),
    "scimix": of_scimix(guide="mean-teacher", semantic_distance="norm"),
    "scimix, half size": of_scimix(threshold=0.0, half_size=0.9),
    "samosa": of_samosa,
    "adain's perception": lambda context: of_adain(context, perception=True),
    "adain": lambda context: of_adain(context, perception=False),
    "cutmix": lambda context: mixing.plan("cutmix", LABELLED, context, 0),
    "augmix": lambda context: mixing.plan("augmix-jsd", LABELLED, context, 0),
    "recursivemix": lambda context: mixing.plan("recursivemix", LABELLED, context, 0),
}


@pytest.fixture(scope="module")
def context() -> Context:
    return noise(3, 16, 40, Accelerator(cpu=True), labelled=12)


def computed(plan: Plan, *, step: int = 1, times: int = 1) -> dict[str, torch.Tensor]:
    """The gradient of every task of a step, flat; of the last of several that see one another's history."""
    gradients, handed = {}, ()
    batch = next(plan.stream.from_step(0))
    for _ in range(times):
        torch.manual_seed(5)
        handed = ()
        for name, task in plan.tasks.items():
            losses, _, handed, *_ = task.objective(batch, replace(plan.clock, step=step), *handed)
            handed = tuple(tensor.float() for tensor in handed)
            task.optimizer.zero_grad()
            with torch.autocast("cpu", enabled=False):
                torch.stack(list(weighted(losses, task.weights, plan.clock).values())).sum().backward()
            gradients[name] = torch.cat([p.grad.flatten() for p in task.parameters if p.grad is not None])
    return gradients


@pytest.mark.parametrize("name", PLANS)
def test_a_step_in_bf16_goes_where_one_in_fp32_goes(context, name):
    exact = computed(PLANS[name](context), step=2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = computed(PLANS[name](context), step=2)
    for task, gradient in exact.items():
        assert mixed[task].dtype == torch.float32 and not torch.equal(mixed[task], gradient)
        assert torch.cosine_similarity(mixed[task], gradient, dim=0) > 0.95, task
        assert mixed[task].norm() == pytest.approx(gradient.norm().item(), rel=0.1), task


# --- what stays float32 --------------------------------------------------------------------------------------

SENSITIVE = {
    "_softmax", "_log_softmax", "linalg_vector_norm", "softplus", "mse_loss", "nll_loss_forward", "rsqrt", "log", "exp",
    "sqrt", "var_mean", "sigmoid",
}  # fmt: skip


class Dtypes(TorchDispatchMode):
    """Of the floating tensors that operations took, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        for each in args:
            if isinstance(each, torch.Tensor) and each.is_floating_point():
                self.seen.setdefault(name, set()).add(each.dtype)
        return function(*args, **(kwargs or {}))


@contextmanager
def watched():
    with torch.autocast("cpu", torch.bfloat16), Dtypes() as dtypes:
        yield dtypes.seen


@pytest.mark.parametrize("name", PLANS)
def test_softmax_norms_losses_and_demodulation_are_float32(context, name):
    """Backward too; convolutions are not."""
    plan = PLANS[name](context)
    with watched() as seen:
        computed(plan, times=2 if name == "recursivemix" else 1)
    assert torch.bfloat16 in seen["convolution"] and torch.bfloat16 in seen["convolution_backward"]
    reduced = {op for op in SENSITIVE & seen.keys() if seen[op] != {torch.float32}}
    assert not reduced, {op: seen[op] for op in reduced}
    assert {"_log_softmax"} & seen.keys() or name == "adain"


def test_r1_and_the_critics_pass_for_it_are_float32_in_the_steps_that_have_it(context):
    plan = of_scimix()(context)
    critic = plan.tasks["discriminator"].objective
    batch = next(plan.stream.from_step(0))
    images = torch.cat([batch.labelled[0], batch.unlabelled[0]])
    for step, dtype in ((0, torch.float32), (1, torch.bfloat16), (2, torch.float32)):
        with watched() as seen:
            losses = critic(batch, replace(plan.clock, step=step), images, images, images).losses
            with torch.autocast("cpu", enabled=False):
                torch.stack(list(losses.values())).sum().backward()
        assert seen["convolution"] == seen["convolution_backward"] == seen["addmm"] == {dtype}
        assert (losses["gradient_penalty"] > 0) == (step != 1)


# --- whole runs ----------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", ["fixmatch", "scimix, half size"])
def test_a_run_in_bf16_that_is_stopped_and_resumed_equals_one_that_never_stopped(
    processor, monkeypatch, tmp_path, name
):
    """Bit for bit. Training computes in bf16, and what is judged is judged in float32."""

    def run(folder: Path, *, stop: int | None = None, resume: bool = False) -> dict[str, torch.Tensor]:
        processor(*WITH)
        settings = RunSettings(data="noise", out=folder, resume=resume, save_every=2, evaluate_every=100)
        context = replace(noise(3, 16, 40, make_accelerator(threads=1), labelled=12), settings=settings)
        plan = PLANS[name](context)
        plan.clock.steps = 4
        seen = {True: set(), False: set()}
        for network in (plan.network, plan.judged):
            convolution = next(part for part in network.modules() if isinstance(part, torch.nn.Conv2d))
            convolution.register_forward_hook(lambda part, _, made: seen[part.training].add(made.dtype))

        @torch.no_grad()
        def score(network, part, indices):
            classify = plan.classify or (lambda network, images: network.classifier(images)[1])
            return Scored({"accuracy": float(classify(network, torch.rand(2, 3, 16, 16)).sum())})

        def after_step(folder: Path):
            if plan.clock.step == stop:
                raise Stopped
            return before(folder)

        before, plan.after_step, plan.score = plan.after_step, after_step, score
        try:
            train(plan, settings, folder, 3)
        except Stopped:
            return {}
        assert seen == {True: {torch.bfloat16}, False: {torch.float32}}
        return copy.deepcopy(plan.network.state_dict())

    whole = run(tmp_path / "whole")
    run(tmp_path / "halves", stop=3)
    again = run(tmp_path / "halves", resume=True)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert {tensor.dtype for tensor in whole.values()} <= {torch.float32, torch.int64}
