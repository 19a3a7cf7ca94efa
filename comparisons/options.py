"""The options of every command that trains networks: its data, its networks, and what they must fulfil.

Nothing here takes long to import, nor does anything in the ``options.py`` of a command: so `--help` is there at once.
"""

import hashlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite, isqrt
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from tyro.conf import Positional

from finite.data.named import DATA, Shaped, Wanted, load, may_be_images, suffix
from finite.data.synthetic import Data
from limits import Problem, minibatches
from limits.activations import ACTIVATIONS
from limits.command.arguments import OneOf
from limits.losses import LOSSES
from limits.models import MODELS, POOLINGS, Model, layers_of, read_model
from limits.optimizers import OPTIMIZERS

UNRECORDED = ("out", "dry_run", "processes", "cluster", "compilation_cache")  # options on which no number depends
JOB_QUEUES = {  # of dask_jobqueue; local: its jobs are processes of this machine
    "slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster", "oar": "OARCluster",
    "htcondor": "HTCondorCluster", "moab": "MoabCluster", "local": "LocalCluster",
}  # fmt: skip
MEASUREMENTS = 8  # after the first one, where a command is not told how many


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options that say what is learned; the options of a command inherit them.

    A default that is None adapts to what was given: ``adapted``.
    """

    notes: ClassVar[str] = """data of your own:
  FILE.npz  inputs (P, D), or images (P, H, W[, 3]) of bytes or reals in [0, 1];
            targets (P[, C]) or labels (P,); or train_images and train_labels
  DIR       pictures in a folder per class, or train/, val/, test/ of such ones
  CIFAR-10  its binary version, a folder or its .tar.gz
  FILE.txt  UTF-8, every character a token; for gpt"""

    data: Annotated[str | None, OneOf(DATA, only=False)] = None
    """A file or folder, see above, or one of these; default gaussian, for models of images digits, for gpt plays."""
    samples: int | None = None
    """P, drawn at random, as they come; default 40 for gaussian, 256 for digits, patches10 and texts, for other files all."""
    image_size: int | None = None
    """Images are cut to their central square and scaled to so many pixels a side; wanted where a folder's pictures differ."""
    inputs: int | None = None
    """D; default 10 for gaussian, 16 characters of a text, else what the data has."""
    outputs: int | None = None
    """C; default 1, with cross-entropy 10. digits: 1 is even or odd, C > 1 the classes 0 … C−1."""
    loss: Annotated[str, OneOf(LOSSES)] = "mse"
    """With classes the targets of gaussian and digits are those."""
    seed: int = 0
    """Of data, batches and networks."""
    processes: int = 1
    """So many of this machine work at once; with a job queue as cluster, so many jobs."""
    cluster: str | None = None
    """Instead of this machine: the address of a Dask scheduler, its file (.json), or a job queue that dask-jobqueue knows and
    its jobqueue.yaml describes: slurm, pbs, sge, lsf, oar, htcondor, moab. It sees the same folder. Needs the extra cluster."""
    dry_run: bool = False
    """Only say how many cells are left to compute, and about how many minutes and GiB that takes; nothing is written."""
    compilation_cache: bool = True
    """Keep what JAX compiles in your cache folder, where the next run finds it; a JAX_COMPILATION_CACHE_DIR of your own is used
    instead, and JAX_ENABLE_COMPILATION_CACHE=false is the same as --no-compilation-cache. No number depends on it."""
    usual_samples: ClassVar[Mapping[str, int]] = {}  # of data by its name, where a command wants others than usual
    precision: ClassVar[str] = "float64"  # of what is learned from them

    def adapted(self) -> "DataOptions":
        """With the defaults that follow from what was given, and every ~ written out; the same again if it is asked again.

        Raises ValueError, in one line, for a number that is not finite or too large, and for an option without effect.
        """
        given = {field.name: _at_home(getattr(self, field.name)) for field in fields(self)}
        for name, value in given.items():
            _check_numbers(name, value)
        options = replace(self, **given)
        options = replace(options, data=options.usual_data) if options.data is None else options
        _check_effects(options)
        return options

    @property
    def usual_data(self) -> str:
        """Where there is no model."""
        return "gaussian"

    def without_effect(self) -> dict[str, str]:
        """Options that change nothing beside the others, and why."""
        reasons = {} if may_be_images(self.data) else {"image_size": f"{self.data} is taken as it is"}
        return reasons | self._cluster_without_effect()

    def _cluster_without_effect(self):
        alone = self.cluster not in (None, *JOB_QUEUES)
        return {"processes": f"the scheduler {self.cluster} has its own workers"} if alone else {}

    def load(self) -> Data:
        """Inputs (P, D) and targets (P, C).  Raises ValueError in one line that says what is wrong with the data."""
        return self.load_shaped()[:2]

    def load_shaped(self) -> Shaped:
        """And of images their (H, W, channels), where the data says it."""
        options = self.adapted()
        inputs, targets, shape = load(options.data, options.wanted)
        if LOSSES[options.loss].of_classes and options.suffix != ".npz":
            targets = np.eye(targets.shape[1])[targets.argmax(axis=1)]  # of a centred one-hot vector: its class
        for side, wanted, size in (("inputs", self.inputs, inputs.shape[1]), ("outputs", self.outputs, targets.shape[1])):
            if wanted not in (None, size):
                raise ValueError(f"{wanted} {side}: {options.data} has {size}")
        if not inputs.any():
            raise ValueError(f"all inputs of {options.data} are zero: there is nothing to tell apart")
        for side, values in (("inputs", inputs), ("targets", targets)):
            if (largest := np.abs(values).max()) > np.finfo(options.precision).max:
                raise ValueError(f"{side} reach {largest:.2g}: beyond {options.precision}; take float64, or scale them")
        return inputs, targets, shape

    @property
    def wanted(self) -> Wanted:
        """What is wanted of the data."""
        samples = self.usual_samples.get(self.data) if self.samples is None else self.samples
        return Wanted(samples, self.inputs, self.outputs, self.loss, self.seed, self.image_size)

    @property
    def suffix(self) -> str:
        """How the name of the data ends, in small letters."""
        return suffix(self.data)


def _at_home(value: Any) -> Any:
    """Texts and paths, also of a tuple, with ~ written out, as a shell does only where it stands alone."""
    if isinstance(value, tuple):
        return tuple(_at_home(entry) for entry in value)
    return type(value)(os.path.expanduser(value)) if isinstance(value, str | Path) and str(value)[:1] == "~" else value


def _check_numbers(name, value):
    """Raises ValueError where a number is not finite, or beyond what an array on the device can be long."""
    option = name.replace("_", "-")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not isfinite(number):
            raise ValueError(f"{option} {number:g}: wanted a finite number")
        if isinstance(number, int) and abs(number) >= 2**31 and name != "seed":
            raise ValueError(f"{option} {number}: wanted a number below 2^31")


def _check_effects(options):
    """Raises ValueError for an option that was given and has no effect."""
    for name, why in options.without_effect().items():
        value = getattr(options, name)
        if value != type(options).__dataclass_fields__[name].default:
            raise ValueError(f"{name.replace('_', '-')} {value}: {why}")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(DataOptions):
    """The options that say which network learns it and how; the options of a command inherit them too."""

    model: Annotated[str, OneOf(MODELS, only=False)] = "linear2"
    """linear2, linear3, ...: so many weight matrices. mlp2, mlp3, ...: an activation between them."""
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "sgd"
    """Limits are known of sgd only."""
    steps: int = 20
    """Gradient steps."""
    richness: float = 1.0
    """γ0: how far features move; towards 0 is the kernel regime."""
    momentum: float = 0.0
    """Heavy-ball coefficient."""
    nesterov: bool = False
    """Whether it looks ahead."""
    weight_decay: float = 0.0
    """Decay of the weights per unit of time η0 · step."""
    warmup_steps: int = 0
    """Steps over which the learning rate grows to η0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows: η0, or a cosine down to 0 at the last step."""
    batch_size: int | Literal["all"] | None = None
    """Samples per minibatch; default all of them."""
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "tanh"
    """Activation of mlp... and resmlp."""
    block_size: int = 1
    """Matrices, or convolutions, one behind the other in a block of resmlp, resconvnet."""
    pooling: Annotated[str, OneOf(POOLINGS)] = "max"
    """Of models of images that have a choice."""
    augment: bool = False
    """Each step sees its images shifted by up to 4 pixels, and mirrored half of the time; what is measured does not."""
    trained: Literal["all", "readout"] = "all"
    """readout: all other weights stay where they start (random features)."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the networks; the limit is always float64."""
    usual_batch: ClassVar[int | None] = None  # all of them

    @property
    def network(self) -> Model:
        """Without its depth."""
        return read_model(self.model, activation=self.activation, block_size=self.block_size, pooling=self.pooling)

    @property
    def usual_data(self) -> str:
        """What the model reads; images of a given size are white noise."""
        images = "digits" if self.inputs is None else "gaussian"
        return {"vectors": "gaussian", "images": images, "tokens": "plays"}[self.network.reads]

    def without_effect(self) -> dict[str, str]:
        return super().without_effect() | without_effect_on(self.model) | self._schedule_without_effect()

    def _schedule_without_effect(self):
        covered = 0 < self.steps <= self.warmup_steps
        return {"schedule": f"nothing follows a warm-up of {self.warmup_steps} steps of {self.steps}"} if covered else {}

    def minibatch(self, num_samples: int) -> int | None:
        """Samples per minibatch, None for all of them; a default that is more than there are is all of them."""
        if self.batch_size is None:
            return None if self.usual_batch is None or num_samples <= self.usual_batch else self.usual_batch
        return None if self.batch_size == "all" else self.batch_size

    def problem(self, **given) -> Problem:
        """The problem of these options, with what a command adds.  Raises ValueError in one line."""
        from finite.training.descent import UPDATES  # not before options are read

        UPDATES.find(self.optimizer)
        inputs, targets, shape = self.load_shaped()
        own = {field.name: getattr(self, field.name) for field in fields(Problem) if hasattr(self, field.name)}
        del own["inputs"]  # of the options: their number
        drawn = batches(self.seed, len(inputs), self.minibatch(len(inputs)), self.steps)
        given = {"image_shape": shape, "num_steps": self.steps, "batches": drawn} | given
        return Problem(inputs=inputs, targets=targets, **own | given)

    def described(self, problem: Problem) -> str:
        """For the title of a picture: model, optimiser, data and training."""
        network, name = problem.network, self.model
        row = layers_of(name)
        deep = "" if row.depth else f" L = {network.depth}"
        activation = "" if row.activation else f" {network.activation}"
        more = [f"β = {self.momentum:g}{' Nesterov' if self.nesterov else ''}"] if self.momentum else []
        more += [f"λ = {self.weight_decay:g}"] if self.weight_decay else []
        more += [f"warm-up {self.warmup_steps}"] if self.warmup_steps else []
        more += [self.schedule] if self.schedule != "constant" else []
        more += [] if problem.batches is None else [f"batch {problem.batches.shape[1]}"]
        more += ["augmented"] if self.augment else []
        more += ["readout only"] if self.trained == "readout" else []
        sizes = f"P = {problem.num_samples}, D = {problem.num_inputs}, C = {problem.num_outputs}"
        loss = {"mse": "MSE"}.get(self.loss, self.loss.replace("_", "-"))
        training = ", ".join([f"γ0 = {self.richness:g}", *more])
        return f"{name}{deep}{activation}, {self.optimizer}, {Path(self.data).name}, {loss}, {sizes}, {training}"


@dataclass(frozen=True, kw_only=True)
class OwnOptions(TrainingOptions):
    """Of commands that train a user's own network too, where the model is FILE.py:NAME."""

    model: Annotated[str, OneOf(MODELS, only=False)] = "linear2"
    """linear2, linear3, ...: so many weight matrices. mlp2, mlp3, ...: an activation between them. Or a network of your own,
    FILE.py:NAME: a function build(width, key) that returns (params, apply), or a finite.networks.own.Model."""
    loss: Annotated[str, OneOf(LOSSES, only=False)] = "mse"
    """With classes the targets of gaussian and digits are those. Of your own network also FILE.py:NAME of a function (outputs,
    targets) that returns one number."""
    batch: str = ""
    """Of your own network, what it learns: FILE.npz with arrays inputs and targets, or FILE.py:NAME of a pair of them."""
    optimizer: Annotated[str, OneOf(OPTIMIZERS, only=False)] = "sgd"
    """Limits are known of sgd only. Of your own network it is Python that makes an optax transformation, of optax and width:
    "optax.adamw(1e-3)"; or FILE.py:NAME of one, or of a function of the width. η0 multiplies its updates. There are"""
    of_own: ClassVar[frozenset[str]] = frozenset({
        "model", "loss", "batch", "optimizer", "steps", "measure_every", "batch_size", "widths", "learning_rates",
        "learning_rate", "seeds", "seed", "sharpness_seeds", "curvature_samples", "observables", "top_k", "tolerance",
        "processes", "cluster", "dry_run", "compilation_cache", "out",
    })  # fmt: skip  (the options that have a meaning for a network that is not ours)

    @property
    def own(self) -> bool:
        """Whether the network is the user's."""
        return ".py:" in self.model

    def adapted(self) -> "OwnOptions":
        if not self.own:  # whose words are read elsewhere
            OPTIMIZERS.find(self.optimizer)
            LOSSES.find(self.loss or "mse")
        return super().adapted()

    @property
    def usual_data(self) -> str | None:
        return None if self.own else super().usual_data

    def without_effect(self) -> dict[str, str]:
        if not self.own:
            return super().without_effect() | {"batch": "it is of a network of your own, --model FILE.py:NAME"}
        why = f"of {self.name} it has no meaning"
        others = {field.name: why for field in fields(self) if field.name not in self.of_own}
        return self._cluster_without_effect() | others

    @property
    def name(self) -> str:
        """Of the model, without the folders of its file."""
        return Path(self.model).name

    def recipe(self) -> Any:
        """How the user's own network is trained, a ``finite.training.own.Recipe``.  Raises ValueError, in one line."""
        from finite.training.own import Recipe

        usual = type(self).__dataclass_fields__["optimizer"].default
        recipe = Recipe(self.model, self.loss or "", self.batch, "" if self.optimizer == usual else self.optimizer,
                        self.steps, self.measure_every, None, self.seed)  # fmt: skip
        return replace(recipe, batch_size=self.minibatch(recipe.num_samples))

    def described_own(self, samples: int) -> str:
        """For the title of a picture."""
        batch = f", batch {self.minibatch(samples)}" if self.minibatch(samples) else ""
        return f"{self.name}, {self.optimizer}, P = {samples}{batch}"


def without_effect_on(model: str) -> dict[str, str]:
    """Options of layers that the model does not have, and why."""
    row, blocks = layers_of(model), [entry.name for entry in MODELS.values() if entry.block_size is None]
    chosen = {
        "activation": (row.activation is None, "has its own"),
        "block_size": (row.block_size is None, f"has its own; of {' and '.join(blocks)} it can be chosen"),
        "pooling": (row.pools, "has none"),
    }
    return {name: f"{model} {why}" for name, (has, why) in chosen.items() if not has}


def usual_interval(steps: int) -> int:
    """Steps between two measurements: the divisor of the steps that leaves nearly ``MEASUREMENTS`` of them."""
    small = [n for n in range(1, isqrt(max(steps, 1)) + 1) if steps % n == 0]
    counts = sorted({*small, *(steps // n for n in small)}, reverse=True)
    return max(steps, 1) // min(counts, key=lambda count: max(count / MEASUREMENTS, MEASUREMENTS / max(count, 1)))


def check_seeds(seeds: int, seed: int) -> None:
    """Raises ValueError where the number of networks per width is below 2, or the seed below 0."""
    if seeds < 2:
        raise ValueError(f"{seeds} seeds: at least 2 are needed for an interval")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed} must be at least 0 and below 2^32")


def check_distinct(name: str, values: tuple, fewest: int) -> None:
    """Raises ValueError for fewer than ``fewest`` values, one given twice, or a number that is not positive and finite."""
    positive = all(isinstance(value, str) or 0 < value < np.inf for value in values)
    if len(values) < fewest or len(set(values)) < len(values) or not positive:
        listed = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values) or "none"
        raise ValueError(f"{name} {listed}: wanted at least {fewest}, positive, none twice")


def sized(options: TrainingOptions, problem: Problem) -> str:
    """What is trained, without the depth where there are several, and with the width where there is one."""
    text = options.described(problem)
    if len(options.depths) > 1:
        text = text.replace(f" L = {problem.network.depth}", "", 1)
    return text + (f", N = {options.widths[0]}" if len(options.widths) == 1 else "")


def check_depths(model: str, depths: tuple[int, ...], usual: tuple[int, ...] = (2,)) -> None:
    """Raises ValueError for other depths than the usual, of a model that has one of its own."""
    if depths != usual and layers_of(model).depth:
        listed, of_any = " ".join(map(str, depths)), [row.name for row in MODELS.values() if row.depth is None]
        raise ValueError(f"depths {listed}: {model} has its own; models of any depth: {', '.join(of_any)}")


def check_interval(measure_every: int, steps: int) -> None:
    """Raises ValueError where it does not divide the steps."""
    if measure_every < 1 or steps % measure_every:
        raise ValueError(f"measure-every {measure_every}: wanted a divisor of the {steps} steps")


def batches(seed: int, num_samples: int, batch_size: int | None, num_steps: int) -> Int[np.ndarray, "T b"] | None:
    """The samples of every step, None for all of them.  Raises ValueError for a batch larger than the data, or empty."""
    if batch_size is None:
        return None
    return minibatches(np.random.default_rng((seed, 1)), num_samples, batch_size, max(num_steps, 0))


def config(options: DataOptions, inputs: Float[np.ndarray, "P D"], targets: Float[np.ndarray, "P C"]) -> dict:
    """All that the numbers depend on, as JSON has it: every option that has an effect, and the SHA-256 of the data."""
    return settings(options) | {"data_sha256": hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest()}


def settings(options: DataOptions) -> dict:
    """Every option that has an effect on a number, as JSON has it."""
    options = options.adapted()
    unrecorded = {*UNRECORDED, *options.without_effect()}
    given = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in unrecorded}
    return given | {name: list(value) for name, value in given.items() if isinstance(value, tuple)}


def as_given(options: Any, program: str) -> str:
    """A command with these options, those that are as usual left out, and where and by whom it is computed."""
    words = []
    for field in fields(options):
        value, name = getattr(options, field.name), field.name.replace("_", "-")
        if value == field.default or value is None or field.name in UNRECORDED:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            named = [] if Positional in getattr(field.type, "__metadata__", ()) else [f"--{name}"]
            words += [*named, *map(str, value if isinstance(value, tuple) else (value,))]
    return f"{program} {shlex.join(words)}".rstrip()
