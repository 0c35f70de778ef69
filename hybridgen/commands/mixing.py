"""Commands on mixing: studies of what methods make of images, and of what networks learn from it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from hybridgen.commands.options import Batch, Cells, ImageCount, Side, Steps, Threads
from hybridgen.errors import InputError
from hybridgen.settings import NUMBER, Seed, settings

if TYPE_CHECKING:
    import accelerate

    import hybridgen.data.datasets
    import hybridgen.evaluation.mixing_studies
    import hybridgen.evaluation.studies
    import hybridgen.networks.classifiers
    import hybridgen.networks.multi_input
    import hybridgen.types

    Network = hybridgen.networks.classifiers.Classifier | hybridgen.networks.multi_input.MultiInputClassifier
    Networks = tuple[str, dict[str, tuple[Network, hybridgen.types.Images]]]


@settings
class MixingStudy(ABC):
    """What the studies of mixing have in common."""

    out: Path
    """Folder of the three files, none of which is overwritten."""
    seed: Seed = 0
    """From which all is drawn."""
    threads: Threads | None = None
    """CPU threads; all cores unless given."""

    @abstractmethod
    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding": ...

    def run(self) -> None:
        from hybridgen.evaluation.studies import files_of, write
        from hybridgen.training.engine import make_accelerator

        (name,) = (name for name, kind in MIXING_STUDIES.items() if type(self) is kind)
        paths = files_of(name, self.out)
        accelerator = make_accelerator(precision="fp32", threads=self.threads)
        if not accelerator.is_main_process:
            return
        finding = self._find(accelerator)
        write(finding, paths)
        print(f"{finding.table}{paths[-1]}")


@settings
class OfImages(MixingStudy, ABC):
    """What studies of the images of a data set have in common."""

    data: str = "digits-m"
    """Data set: digits-m, cifar10, ..., the path of a folder, CSV, Parquet or npz file, or hf:NAME (Hugging Face)."""
    image_size: Side | None = None
    """Side to which images are brought. Unless given that of --networks, where a study has them, else their own, and of
    files of unequal sizes 16, 32 or 64."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""

    def _dataset(self, image_size: int | None = None) -> "hybridgen.data.datasets.Dataset":
        from hybridgen.data.datasets import load_dataset

        size = self.image_size or image_size
        return load_dataset(self.data, image_size=size, data_root=self.data_root, download=self.download)


@settings
class StudyMaps(OfImages):
    """Class activation maps of images by several networks, side by side: cam.json, cam.txt (printed too), cam.png.

    Of test images as they are, of files, or of test images that --mixed mixes. Where it is known what shows where, also
    the part of each map that lies inside its class's region.
    """

    networks: tuple[Path, ...]
    """Files network.safetensors of supervised training, of the same classes and image size."""
    index: tuple[Annotated[int, Field(ge=0, le=10_000_000), NUMBER], ...] = ()
    """Which test images; --count drawn ones unless given."""
    files: tuple[Path, ...] = ()
    """Image files instead; told apart by their folders where names are equal."""
    count: ImageCount | None = None
    """How many test images are drawn, or mixed; 64 unless given. The picture shows the first 6."""
    classes: tuple[str, ...] = ()
    """Of which classes; of those in each image unless given, which for --files they must be."""
    most: Annotated[int, Field(ge=1, le=100_000), NUMBER] = 3
    """Classes of an image, at most, by their share, where they are not given."""
    mixed: str | None = None
    """Mix the images by mixup, cutmix, ..., or recursivemix."""
    steps: Steps | None = None
    """Of recursivemix: how often it mixes; 4 unless given."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        import torch

        from hybridgen.evaluation.cam import cam, load_networks, present_classes
        from hybridgen.evaluation.mixing_studies import RECURSIVE, check_mixers

        if self.files and (self.index or self.count or self.mixed):
            raise InputError("--files: stand instead of --index, --count and --mixed; give one or the other")
        if self.index and (self.count or self.mixed):
            raise InputError("--index: stands instead of --count and --mixed; give one or the other")
        for flag, given in (("--index", self.index), ("--files", self.files)):
            if twice := [each for place, each in enumerate(given) if each in given[:place]]:
                raise InputError(f"{flag}: {twice[0]} is there twice; each is needed once")
        if self.files and not self.classes:
            raise InputError("--files: their classes are not known; give --classes")
        if self.mixed is not None:
            check_mixers([self.mixed], flag="--mixed")
        if self.steps is not None and self.mixed != RECURSIVE:
            raise InputError("--steps: is of --mixed recursivemix")
        networks, classes, image_size = load_networks(self.networks)
        if unknown := [name for name in self.classes if name not in classes]:
            raise InputError(f"--classes: {unknown[0]!r} is unknown; the networks know {', '.join(classes)}")
        inputs, names = self._inputs(classes, image_size)
        if self.classes:
            chosen = torch.tensor([[classes.index(name) for name in self.classes]]).expand(len(names), -1)
        else:
            chosen = present_classes(inputs, self.most)
        finding = cam(networks, inputs, chosen, classes, names)
        circumstances = {"study": "cam", "mixed": self.mixed, "seed": self.seed}
        return replace(finding, values=circumstances | {"data": None if self.files else self.data} | finding.values)

    def _inputs(
        self, classes: tuple[str, ...], image_size: int
    ) -> "tuple[hybridgen.evaluation.mixing_studies.Inputs, list[str]]":
        """The images, and their names."""
        from itertools import islice

        import torch

        from hybridgen.data.sources import Files
        from hybridgen.evaluation.mixing_studies import RECURSIVE, Inputs, drawn_batches, inputs_of, mixed_inputs
        from hybridgen.evaluation.studies import apart
        from hybridgen.files import printable

        if self.files:
            names = [printable(path.name) for path in self.files]
            if len(set(names)) < len(names):
                names = apart([tuple(map(printable, path.parts)) for path in self.files])
            images = Files(self.files, self.image_size or image_size).gather(torch.arange(len(self.files)))
            return Inputs(images / 255, torch.zeros(len(images), len(classes)), None), names
        dataset = self._dataset(image_size)
        if dataset.classes != classes:
            known, here = ", ".join(classes), ", ".join(dataset.classes)
            raise InputError(f"--data: the networks know the classes {known}; {dataset.name} has {here}")
        if self.index:
            if outside := [index for index in self.index if not 0 <= index < len(dataset.test)]:
                raise InputError(f"--index {outside[0]}: there are {len(dataset.test)} test images")
            named = [f"image {index}" for index in self.index]
            return inputs_of(dataset.test, torch.tensor(self.index), len(classes)), named
        generator = torch.Generator().manual_seed(self.seed)
        batches = drawn_batches(dataset.test, len(classes), self.count or 64, generator)
        steps = self.steps or 4 if self.mixed == RECURSIVE else 1
        *_, inputs = islice(mixed_inputs(self.mixed or "none", batches, generator), steps)
        return inputs, [f"{self.mixed or 'image'} {number}" for number in range(1, 1 + len(inputs.images))]


@settings
class StudySequence(OfImages):
    """The inputs that RecursiveMix makes, step after step: sequence.json, sequence.txt (printed too), sequence.png."""

    steps: Steps = 8
    """How many."""
    places: Cells = 4
    """Of the batch, each a row of the picture."""
    alpha: Annotated[float, Field(ge=1e-6, le=1), NUMBER] = 0.5
    """α: boxes take up to this share of the area."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.evaluation.mixing_studies import sequence

        return sequence(self._dataset(), steps=self.steps, places=self.places, alpha=self.alpha, seed=self.seed)


@settings
class StudyTargets(OfImages):
    """How many classes the targets have above one threshold or another: targets.json, targets.txt (printed too),
    targets.png."""

    methods: tuple[str, ...] = ("none", "mixup", "cutmix", "resizemix", "recursivemix")
    """Which ones: none, mixup, cutmix, ..., recursivemix."""
    steps: Steps = 100
    """Of each run."""
    batch: Batch = 64
    """Images a step."""
    runs: Annotated[int, Field(ge=1, le=10_000), NUMBER] = 3
    """How many."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.evaluation.mixing_studies import targets
        from hybridgen.methods.mixing import TITLES

        return targets(
            self._dataset(),
            self.methods,
            steps=self.steps,
            batch=self.batch,
            runs=self.runs,
            seed=self.seed,
            titles=TITLES,
        )


@settings
class StudyMixing(OfImages):
    """The same images mixed by each method: mixing.json, mixing.txt (printed too), mixing.png."""

    methods: tuple[str, ...] = ()
    """Which ones: mixup, cutmix, ..., recursivemix; all unless given."""
    columns: Cells = 8
    """Images, each with a partner."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.evaluation.mixing_studies import MIXERS, mixing
        from hybridgen.methods.mixing import TITLES

        return mixing(self._dataset(), self.methods or MIXERS[1:], columns=self.columns, seed=self.seed, titles=TITLES)


@settings
class StudyCost(MixingStudy):
    """Memory, FLOPs, parameters and time of training by each method: cost.json, cost.txt (printed too), cost.png.

    On random images, beside no mixing, by turns in one process.
    """

    network: str | None = None
    """fast, cifar-resnet18, pyramidnet200-240, resnet50, ...; unless given fast, a cifar-resnet18 of an eighth of its
    width for images of 16 pixels or fewer, and one of --width if that is given."""
    width: Annotated[float, Field(ge=1e-3, le=100), NUMBER] | None = None
    """Multiplies its filters; 1 unless given."""
    methods: tuple[str, ...] = ("mixup", "cutmix", "recursivemix")
    """Which ones: mixup, cutmix, manifold-mixup, ..., augmix, recursivemix."""
    classes: Annotated[int, Field(ge=1, le=100_000), NUMBER] = 10
    """Of the network."""
    image_size: Side = 32
    """Side of the images."""
    batch: Batch = 64
    """Images a step."""
    rounds: Steps = 5
    """How often the methods take turns."""
    steps: Steps = 3
    """Of each method in a round."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.methods.labelled import TrainingSettings
        from hybridgen.tables.cost import cost

        if accelerator.num_processes > 1:
            raise InputError("study cost: measures one process; start it without accelerate launch")
        config = TrainingSettings(network=self.network, width=self.width, batch=self.batch)
        return cost(
            config,
            self.methods,
            accelerator,
            classes=self.classes,
            image_size=self.image_size,
            rounds=self.rounds,
            steps=self.steps,
        )


@settings
class StudyRuns(MixingStudy):
    """Test figures of finished runs over one of their settings: runs.json, runs.txt (printed too), runs.png.

    Means and deviations over seeds, a curve for each method. So are drawn the thesis's figures over p
    (--over method.patch-probability), r (method.root), α (method.alpha), b (method.repetitions), width and members
    (training.width, method.inputs).
    """

    runs: tuple[Path, ...]
    """Folders of finished runs, or of comparisons with runs inside."""
    over: str
    """The setting, with its group: method.alpha, training.width, labels, ..."""
    figures: tuple[str, ...] = ("accuracy",)
    """Which ones: accuracy, member-accuracy, disagreement, ratio-error, nll-calibrated, ece, ..."""
    epoch: Literal["last", "selected"] = "last"
    """Whose figures: those of the last evaluation, or of the one that validation images chose."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.tables.over import over

        return over(self.over, self.runs, self.figures, epoch=self.epoch)


@settings
class OfRuns(MixingStudy, ABC):
    """What studies of finished runs and their data have in common."""

    data_root: str | None = None
    """Where data sets lie or are downloaded to; the runs' own unless given."""
    download: bool = False
    """Download the data set if it is missing."""

    def _loaded(
        self, runs: Sequence[Path], accelerator: "accelerate.Accelerator"
    ) -> "tuple[hybridgen.data.datasets.Dataset, dict[str, tuple[Network, int | None]]]":
        """The runs' data set, and by their names networks, with the side of the images' centre if they see no more."""
        from hybridgen.evaluation.finished import check_data, dataset_of, find, names_of, network_of

        names = names_of(runs)
        left = [find(run) for run in runs]
        dataset = dataset_of(left, data_root=self.data_root, download=self.download)
        check_data(left, dataset)
        return dataset, {names[run]: network_of(one, dataset, accelerator) for run, one in zip(runs, left, strict=True)}

    def _drawn(self, dataset: "hybridgen.data.datasets.Dataset", count: int) -> "hybridgen.types.Images":
        """So many test images, of which there may be fewer."""
        import torch

        order = torch.randperm(len(dataset.test), generator=torch.Generator().manual_seed(self.seed))
        return dataset.test.images.gather(order[:count]).float() / 255


@settings
class OfNetworks(OfRuns, ABC):
    """What studies of several finished runs' networks have in common."""

    runs: tuple[Path, ...]
    """Folders of finished runs (runs/mixmo/cut-mixmo-seed0), or their checkpoints, of the same kind of network."""
    images: Annotated[int, Field(ge=2, le=1_000_000), NUMBER] = 512
    """Drawn test images that they see; all where there are fewer."""

    def _networks(self, accelerator: "accelerate.Accelerator", count: int) -> "Networks":
        """The data set's name, and by the runs' names networks and so many test images as they see them, of which there
        may be fewer."""
        from hybridgen.methods.labelled import central

        dataset, loaded = self._loaded(self.runs, accelerator)
        images = self._drawn(dataset, count).to(accelerator.device)
        return dataset.name, {name: (network, central(images, crop)) for name, (network, crop) in loaded.items()}


@settings
class StudySharing(OfNetworks):
    """What the subnetworks of MIMO, MixMo and MixShare share: sharing.json, sharing.txt (printed too), sharing.png.

    The least use of a feature by a subnetwork over its largest: behind the encoders and before the classifiers by norms
    of their weights (thesis 3.4.1), behind each stage by the variance that each input makes (A.6.3). And the share of
    active filters (table A.16), of plain networks too.
    """

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.evaluation.sharing import shared_by, study

        data, networks = self._networks(accelerator, self.images + 1)
        found = {name: shared_by(network, images[1:], images[:1]) for name, (network, images) in networks.items()}
        count = len(next(iter(networks.values()))[1]) - 1
        finding = study(found)
        circumstances = {"study": "sharing", "data": data, "images": count, "seed": self.seed}
        return replace(finding, values=circumstances | finding.values)


@settings
class StudyAttention(OfNetworks):
    """What class tokens of MixViT look at: attention.json, attention.txt (printed too), attention.png.

    On images of several inputs at once, how the attention is divided among inputs, beside their share of the tokens; on
    whole images as each input's, how much the attention depends on the input.
    """

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        import torch

        from hybridgen.evaluation.attention import attention_of, study

        data, networks = self._networks(accelerator, self.images)
        draws = lambda: torch.Generator(accelerator.device).manual_seed(self.seed)
        found = {name: attention_of(network, images, draws()) for name, (network, images) in networks.items()}
        count = len(next(iter(networks.values()))[1])
        finding = study(found)
        circumstances = {"study": "attention", "data": data, "images": count, "seed": self.seed}
        return replace(finding, values=circumstances | finding.values)


@settings
class StudyInference(OfRuns):
    """What one network of MixViT answers by every inference of table 4.6, and what each costs: inference.json,
    inference.txt (printed too), inference.png.

    Each image as every input's, as a sum, alternating, as the first input's, as all inputs' tokens: accuracies of the
    ensemble and of its members on the run's test images, measured operations beside the estimate of A.7.3, and the time
    of an image, by turns in one process. Without a run, the cost of a new network.
    """

    of: Path | None = None
    """Folder of a finished run (runs/mixvit/mixvit-embedding-seed0), or its checkpoint."""
    network: str | None = None
    """A new network instead: convit-384-12-5, cait-xs-24, ..."""
    inputs: Annotated[int, Field(ge=2, le=16), NUMBER] | None = None
    """Of --network: images at once; 2 unless given."""
    source: Literal["embedding", "encoding", "none"] | None = None
    """Of --network: what tells them apart; embedding unless given."""
    place: Literal["late", "early"] | None = None
    """Of --network: whether that comes after the feature blocks or before them; late unless given."""
    classes: Annotated[int, Field(ge=1, le=100_000), NUMBER] | None = None
    """Of --network; 100 unless given."""
    image_size: Side | None = None
    """Of --network: side of the images; 32 unless given."""
    batch: Batch = 64
    """Images that are timed at once."""
    rounds: Steps = 5
    """How often each inference is timed."""

    def _find(self, accelerator: "accelerate.Accelerator") -> "hybridgen.evaluation.studies.Finding":
        from hybridgen.evaluation.inference import answers_of, costs, inferences, study
        from hybridgen.methods.labelled import central
        from hybridgen.methods.mixvit import transformer_of

        if accelerator.num_processes > 1:
            raise InputError("study inference: measures one process; start it without accelerate launch")
        answers, circumstances = {}, {"study": "inference", "batch": self.batch, "rounds": self.rounds}
        if self.of is None and self.network is not None:
            classifier, images = self._new(self.network)
            every = inferences(classifier.to(accelerator.device))
            circumstances |= {"network": self.network, "image_size": images.shape[2]}
        elif self.of is not None and self.network is None:
            if given := [name for name in OF_NEW if getattr(self, name) is not None]:
                raise InputError(f"--{given[0].replace('_', '-')}: is of --network; the network of --of has its own")
            dataset, loaded = self._loaded([self.of], accelerator)
            ((name, (classifier, crop)),) = loaded.items()
            every, known = inferences(classifier), (dataset.test.labels >= 0).nonzero().flatten().tolist()
            images = central(self._drawn(dataset, self.batch), crop)
            answers = answers_of(every, dataset.test, known, accelerator, crop=crop)
            circumstances |= {"network": name, "data": dataset.name, "images": len(known), "batch": len(images)}
        else:
            raise InputError("--of, --network: give one of them, a run or the name of a new network")
        found = costs(every, images.to(accelerator.device), rounds=self.rounds)
        finding = study(found, answers, transformer_of(classifier).inference if answers else None)
        return replace(finding, values=circumstances | finding.values)

    def _new(self, name: str) -> "tuple[hybridgen.networks.classifiers.Classifier, hybridgen.types.Images]":
        """A new network, and noise."""
        import torch

        from hybridgen.networks.classifiers import Classifier, several_inputs_of
        from hybridgen.networks.registry import make_network

        torch.manual_seed(self.seed)
        side = self.image_size or 32
        plain = make_network(name, self.classes or 100, image_size=side, pretrained=False)
        how = dict(source=self.source or "embedding", place=self.place or "late", encoders="one")
        how |= dict(inference="separate", ensemble="logits")
        network = several_inputs_of(plain, dict(inputs=self.inputs or 2) | how)
        return Classifier(network, mean=(0.5,) * 3, std=(0.25,) * 3), torch.rand(self.batch, 3, side, side)


OF_NEW = ("inputs", "source", "place", "classes", "image_size")
"""Of `StudyInference`, what a new network is made with."""


MIXING_STUDIES: dict[str, type[MixingStudy]] = {
    "cam": StudyMaps,
    "sequence": StudySequence,
    "targets": StudyTargets,
    "cost": StudyCost,
    "mixing": StudyMixing,
    "runs": StudyRuns,
    "sharing": StudySharing,
    "attention": StudyAttention,
    "inference": StudyInference,
}
"""Studies with options of their own, by what follows `study`."""
