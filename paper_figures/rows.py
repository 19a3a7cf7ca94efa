"""The paper's figures, one row each: its setting, what the paper claims, the commands that make its results, the minutes.

    python -m paper_figures.all --dry-run        the table

Presets: ``tiny`` (minutes; the figures then show how, not what), ``cpu`` (two cores), ``gpu`` (the paper's own scale: CIFAR-10,
WikiText, widths to 1024 or, where gaps are fitted, 2048, 20 to 50 epochs).  On cpu the variants of Figure 1 are half as wide
and as long.
Minutes of cpu are what the commands estimate (--dry-run) or took on two cores; those of gpu are reckoned from steps and sizes
and were never run.

Which of the numbers 17_1 … 19_1 and 29_1 … 33_1 of the paper's appendix is which variant of Figure 1 we do not know: these rows
are named after their setting.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from limits.rows import Table

PRESETS = ("tiny", "cpu", "gpu")
IN_PAPER = {"1_1": "Figure 1", "4_1": "Figure 4", "3_1": "Figure 2", "3_2": "Figure 3", "6_1": "Figure 5", "6_2": "Figure 6",
            "tables_21_1": "the table of exponents"}  # the others are in its appendix
CIFAR10, WIKITEXT = "cifar10", "wikitext.txt"  # the folder and the file that stand in the commands of the preset gpu


@dataclass(frozen=True)
class Run:
    """One command: its module, the options of every preset, and those of each."""

    program: str
    options: str
    sizes: Mapping[str, str]

    def command(self, preset: str, out: Path) -> list[str]:
        """The words after ``python -m``."""
        return [self.program, *shlex.split(f"{self.options} {self.sizes[preset]}"), "--out", str(out)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """
    figure    the paper's, by its page and place there, or those among which it is (``IN_PAPER``)
    script    the module that draws it, of its kind
    runs      folder below the results: how they are made
    claims    (what, of which curve) as ``paper_figures.verdicts`` names it: what the paper says of it
    minutes   of the presets, in their order
    """

    name: str
    figure: str
    script: str
    setting: str
    shows: str
    runs: Mapping[str, Run]
    claims: Mapping[str, str] = field(default_factory=dict)
    minutes: tuple[float, float, float]

    @property
    def in_paper(self) -> str:
        return IN_PAPER.get(self.figure, "appendix")

    def commands(self, preset: str, results: Path) -> list[list[str]]:
        return [run.command(preset, results / folder) for folder, run in self.runs.items()]


def recipe(name: str, results: Path, preset: str = "cpu") -> str:
    """The shell command that makes the results of ``figure_NAME``, or NAME."""
    row = ROWS.find(name.removeprefix("figure_"))
    return " && ".join(f"python -m {shlex.join(words)}" for words in row.commands(preset, results))


PHOTOGRAPHS = {preset: f"--data patches10 --samples {few} --batch-size all"
               for preset, few in zip(PRESETS, (4, 8, 8), strict=True)}  # as many as sampled limits carry
SMALL_PHOTOGRAPHS = {preset: f"--data patches10 --image-size 8 --samples {few} --batch-size all"
                     for preset, few in zip(PRESETS, (2, 4, 4), strict=True)}  # deep networks' limits take longer
TWO_DIGITS = dict.fromkeys(PRESETS, "--data digits --samples 2 --batch-size all")
IMAGES = {"tiny": "--data patches10 --samples 128", "cpu": "--data patches10 --samples 2000", "gpu": f"--data {CIFAR10}"}
DIGITS = dict.fromkeys(PRESETS, "--data digits")
TEXT = dict.fromkeys(PRESETS, "--data plays") | {"gpu": f"--data {WIKITEXT} --samples 50000"}
FIXED, WIDEST = "--richness 1", "64 128 256 512 1024"
WHOLE, HALVED = ("16 32 64 128", "256", "128"), ("8 16 32 64", "128", "64")  # on cpu: widths, steps followed, steps of a sweep
BESIDE_LIMIT = "8 16 32", "16 64 256", "64 128 256 512 1024"  # widths
SHORT = "8 --measure-every 4", "16 --measure-every 4", "32 --measure-every 8"  # steps
FEW, MANY = "0.5 2 8 32", "0.25 0.5 1 2 4 8 16 32 64 128"


def _over(data: Mapping[str, str], *columns: tuple[str, tuple[str, ...]]) -> dict[str, str]:
    """Options of each preset: the data, and ``--option value`` of each column."""
    return {preset: " ".join([data[preset], *(f"--{option} {values[n]}" for option, values in columns)])
            for n, preset in enumerate(PRESETS)}  # fmt: skip


def _training(
    name: str, figure: str, setting: str, options: str = "", *, model: str = "conv", param: str = "mup ntp", batch: int = 128,
    loss: str = "cross_entropy", data: Mapping[str, str] = IMAGES, along: str = "",
    rates: tuple[str, str, str] = (FEW, MANY, MANY), cpu: tuple[str, str, str] = WHOLE,
    claims: Mapping[str, str] | None = None, minutes: tuple[float, float, float] = (2, 9, 480),
) -> Row:  # fmt: skip
    """Figure 1 of some setting: a run along which curvature is followed, and a sweep."""
    widths, steps, swept = cpu
    common = f"--model {model} --param {param} --loss {loss} {options}".rstrip()
    measured = ("curvature-samples", ("32", "256", "1024"))
    batches = ("batch-size", (str(min(batch, 64)), str(batch), str(batch)))
    every = 50 * 50_000 // (39 * batch) if data["gpu"] == IMAGES["gpu"] else 500  # of 50 epochs of CIFAR-10, nearly
    along_whole = f"{39 * every} --measure-every {every}"
    sizes = ("widths", ("8 16 32", widths, WIDEST))
    followed = Run("comparisons.landscape", f"{common} {along} --no-limit".replace("  ", " "),
                   _over(data, sizes, batches, ("steps", ("32", steps, along_whole)), measured))  # fmt: skip
    swept = Run("comparisons.transfer", f"{common} {FIXED} --sharpness-seeds 0 --no-limit",
                _over(data, sizes, batches, ("steps", ("32", swept, str(39 * every))), ("seeds", ("2", "3", "3")),
                      ("learning-rates", rates)))  # fmt: skip
    if claims is None:
        claims = {"sharpness mup": "same", "transfer mup": "same", "sharpness ntp": "moves", "transfer ntp": "moves"}
        claims = {quantity: said for quantity, said in claims.items() if quantity.split()[1] in param.split()}
        claims |= {"sharpness sp": "moves", "transfer sp": "moves"} if "sp" in param.split() else {}
    return Row(name=name, figure=figure, script="figure_1_1", setting=setting, minutes=minutes, claims=claims,
               shows="sharpness and loss against step, final loss against learning rate, per width",
               runs={"landscape": followed, "transfer": swept})  # fmt: skip


def _beside_limit(
    name: str, setting: str, options: str = "", *, param: str = "mup ntp", minutes: tuple[float, float, float]
) -> Row:
    """Figure 1 of so few samples that the limit is known.  The sweep has none: it would be as many limits as rates."""
    common = f"--model conv --param {param} --loss cross_entropy {options}"
    followed = _over(PHOTOGRAPHS, ("widths", BESIDE_LIMIT), ("steps", SHORT))
    swept = _over(PHOTOGRAPHS, ("widths", BESIDE_LIMIT), ("learning-rates", (FEW, MANY, MANY)),
                  ("steps", ("8 --seeds 2", "16 --seeds 3", "32 --seeds 3")))  # fmt: skip
    claims = {f"{quantity} {parametrization}": "same" if parametrization == "mup" else "moves"
              for parametrization in param.split() for quantity in ("sharpness", "transfer")}  # fmt: skip
    return Row(name=name, figure="1_1", script="figure_1_1", setting=setting, minutes=minutes, claims=claims,
               shows="sharpness and loss against step beside their limit, final loss against learning rate, per width",
               runs={"landscape": Run("comparisons.landscape", common, followed),
                     "transfer": Run("comparisons.transfer", f"{common} {FIXED} --sharpness-seeds 0 --no-limit",
                                     swept)})  # fmt: skip


def _eigenvalues_beside_limit(
    name: str, setting: str, model: str, data: Mapping[str, str], steps: tuple[str, str, str],
    minutes: tuple[float, float, float],
) -> Row:  # fmt: skip
    """Figure 2 of so few samples that the limit is known: the NTK's; ten eigenvalues of the Hessian's would take too long."""
    options = (f"--model {model} --param mup --learning-rate 0.3 --observables loss hessian_eigenvalues ntk_eigenvalues"
               " --top-k 10")  # fmt: skip
    return Row(name=name, figure="3_1", script="figure_3_1", setting=setting, minutes=minutes,
               shows="first, fifth, tenth eigenvalue of Hessian and NTK against step, the NTK's beside their limit, per width",
               claims={f"{matrix} {rank}": "same" for matrix in ("hessian", "ntk") for rank in (1, 5, 10)},
               runs={"": Run("comparisons.landscape", options,
                             _over(data, ("widths", BESIDE_LIMIT), ("steps", steps)))})  # fmt: skip


def _eigenvalues(name: str, figure: str, setting: str, rate: float, batch: int) -> Row:
    options = (f"--model convnet --depth 3 --param mup --learning-rate {rate:g} --observables loss hessian_eigenvalues"
               " ntk_eigenvalues --top-k 10 --no-limit")  # fmt: skip
    sizes = _over(IMAGES | {"cpu": "--data patches10 --samples 1000"}, ("widths", ("8 16 32", "8 16 32", "32 64 128 256 512")),
                  ("batch-size", (str(min(batch, 64)), str(batch), str(batch))),
                  ("steps", ("24 --measure-every 6", "96 --measure-every 12", "4800 --measure-every 200")),
                  ("warmup-steps", ("8", "16", "100")), ("curvature-samples", ("32", "64", "1024")))  # fmt: skip
    claims = {f"{matrix} {rank}": "same" for matrix in ("hessian", "ntk") for rank in (1, 5, 10)}
    return Row(name=name, figure=figure, script="figure_3_1", setting=setting, minutes=(2, 3, 240), claims=claims,
               shows="first, fifth and tenth eigenvalue of Hessian and NTK against step, per width",
               runs={"": Run("comparisons.landscape", options, sizes)})  # fmt: skip


def _gaps_to_limit() -> Row:
    sizes = _over(PHOTOGRAPHS, ("widths", ("8 16 32 64", "16 32 64 128", BESIDE_LIMIT[2])), ("seeds", ("5", "6", "8")),
                  ("steps", ("8 --measure-every 2", "12 --measure-every 3", SHORT[2])))  # fmt: skip
    return Row(name="3_2_limit", figure="3_2", script="figure_3_2", setting="SimpleConvNet, μP, few photographs, full batches",
               shows="gaps to the limit against width and time, with their powers", minutes=(3, 11, 80),
               claims={"sharpness in time": "flat", "loss in width": "-0.77 … -0.47"},
               runs={"": Run("comparisons.convergence", "--model conv --loss cross_entropy --learning-rate 0.2 --top-k 1"
                             " --reference theory", sizes)})  # fmt: skip


def _gaps(name: str, figure: str, setting: str, options: str, few: int, widths: str, minutes: float) -> Row:
    """Batches are full: the command measures curvature on all samples.  The last three are those of the preset cpu."""
    data = {"tiny": "--data patches10 --samples 32", "cpu": f"--data patches10 --samples {few}",
            "gpu": f"--data {CIFAR10} --samples 1024"}  # fmt: skip
    sizes = _over(data, ("widths", ("8 16 32 64", widths, "32 64 128 256 512 1024 2048")), ("seeds", ("5", "5", "5")),
                  ("steps", ("24 --measure-every 4", "48 --measure-every 6", "2000 --measure-every 100")))  # fmt: skip
    claims = {"loss in time": "+0.58 … +0.88", "ntk in time": "+2.0 … +2.3", "sharpness in time": "flat",
              "loss in width": "-0.77 … -0.47"}  # fmt: skip
    return Row(name=name, figure=figure, script="figure_3_2", setting=setting, claims=claims, minutes=(3, minutes, 300),
               shows="gaps to the widest network against width and time, with their powers",
               runs={"": Run("comparisons.convergence", f"--loss cross_entropy --learning-rate 0.2 --top-k 1 --reference"
                             f" largest-width {options}", sizes)})  # fmt: skip


RESIDUAL = ("0.64 2.56 10.24", "0.32 0.64 1.28 2.56 5.12 10.24 20.48",
            "0.1 0.13 0.17 0.222 0.29 0.378 0.492 0.641 0.836 1.09 1.42 1.86 2.42 3.16")  # fmt: skip
VIT = ("0.05 0.2 0.8", "0.025 0.05 0.1 0.2 0.4 0.8 1.6", "0.01 0.02 0.04 0.08 0.16 0.32 0.64")


def _deep(options: str, rates: tuple[str, str, str], depths: tuple[str, str, str], batch: str = "128") -> Run:
    """On gpu 40 epochs of batches of 128, or 20 of 64, which are as many steps."""
    data = IMAGES | {"cpu": "--data patches10 --samples 128"}
    sizes = _over(data, ("widths", ("8", "8", "64")), ("depths", depths), ("batch-size", ("32", "64", batch)),
                  ("steps", ("16", "48", "15600")), ("learning-rates", rates), ("seeds", ("2", "4", "3")),
                  ("measure-every", ("8", "12", "1560")))  # fmt: skip
    return Run("comparisons.transfer", f"{options} --param depth_mup --loss cross_entropy {FIXED} --no-limit", sizes)


def _deep_beside_limit() -> Row:
    """Figure 5's first column of so few samples that the limits, one of each rate and depth, are known.

    Squares, not cross-entropy: that of two samples falls with the rate until networks blow up, and has no best one.
    """
    sizes = _over(TWO_DIGITS, ("widths", ("8", "32", "64")),
                  ("depths", ("1 2", "2 4", "3 6")), ("learning-rates", ("0.04 0.08 0.16 0.32",) * 3),
                  ("steps", ("2", "4", "8")), ("measure-every", ("2", "2", "4")), ("seeds", ("2", "8", "8")))  # fmt: skip
    run = Run("comparisons.transfer", f"--model resconvnet --param depth_mup --loss mse {FIXED}", sizes)
    return Row(name="6_1_limit", figure="6_1", script="figure_6_1", setting="residual ConvNet, MSE, two digits, full batches",
               shows="Depth-μP: final loss against learning rate, sharpness at the optimum, per depth, beside their limits",
               claims={"transfer k1": "same", "sharpness k1": "same"}, minutes=(6, 6, 27), runs={"k1": run})  # fmt: skip


BLOCKS = ("2 4 8", "3 6 12", "3 6 12 24 48 96 192")
COLUMNS = {"k1": _deep("--model resconvnet", RESIDUAL, BLOCKS),
           "k2": _deep("--model resconvnet --block-size 2", RESIDUAL, BLOCKS),
           "k3": _deep("--model resconvnet --block-size 3", RESIDUAL, BLOCKS),
           "vit": _deep("--model vit --optimizer adam", VIT, ("1 2 4", "2 4 8", "6 12 24 48 96"), "64")}  # fmt: skip


def _depths(name: str, figure: str, setting: str, columns: tuple[str, ...], minutes: tuple[float, float, float]) -> Row:
    moves = {column: "same" if column == "k1" else "moves" for column in columns}
    claims = {f"{quantity} {column}": said for column, said in moves.items() for quantity in ("transfer", "sharpness")}
    return Row(name=name, figure=figure, script="figure_6_1", setting=setting, minutes=minutes, claims=claims,
               shows="Depth-μP: final loss against learning rate, sharpness at the optimum, per depth",
               runs={column: COLUMNS[column] for column in columns})  # fmt: skip


def _gaps_over_depth(
    name: str, setting: str, options: str, depths: tuple[str, str, str], rate: str = "0.64", batch: str = "128"
) -> Row:
    data = IMAGES | {"cpu": "--data patches10 --samples 128"}
    sizes = _over(data, ("widths", ("8", "8", "64")), ("depths", depths), ("batch-size", ("32", "64", batch)),
                  ("seeds", ("3", "5", "5")), ("curvature-samples", ("32", "64", "1024")),
                  ("steps", ("24 --measure-every 3", "48 --measure-every 4", "15600 --measure-every 390")))  # fmt: skip
    return Row(name=name, figure="33_2", script="figure_33_2", setting=setting, minutes=(2, 8, 600),
               shows="gaps to the deepest network of loss and sharpness against time, with their powers",
               claims={"loss in time": "grows"},
               runs={"": Run("comparisons.landscape", f"{options} --param depth_mup --learning-rate {rate} --no-limit",
                             sizes)})  # fmt: skip


def _directional() -> Row:
    runs, data = {}, IMAGES | {"cpu": "--data patches10 --samples 512"}
    grown = {
        "width": ("--model conv --param mup", [("widths", ("8 16 32", "8 16 32", WIDEST))], "1",
                  ("0.5 2 8", "0.25 0.5 1 2 4 8", MANY)),
        "depth": ("--model resconvnet --param depth_mup", [("widths", ("8", "8", "64")), ("depths", BLOCKS)], "0.64",
                  ("0.64 2.56 10.24", "0.32 0.64 1.28 2.56 5.12 10.24", RESIDUAL[2])),
    }  # fmt: skip
    for grows, (networks, sizes, rate, rates) in grown.items():
        common = [*sizes, ("batch-size", ("32", "64", "128"))]
        steps = ("steps", ("16 --seeds 2", "64 --seeds 4", "15600 --seeds 3"))
        options = f"{networks} --loss cross_entropy"
        runs[f"{grows}/transfer"] = Run("comparisons.transfer", f"{options} {FIXED} --sharpness-seeds 0 --no-limit",
                                        _over(data, *common, steps, ("learning-rates", rates)))  # fmt: skip
        measured = [("measure-every", ("4", "4", "390")), ("curvature-samples", ("32", "128", "1024"))]
        runs[f"{grows}/landscape"] = Run(
            "comparisons.landscape", f"{options} --learning-rate {rate} --observables loss directional_sharpness --no-limit",
            _over(data, *common, steps, *measured))  # fmt: skip
    return Row(name="36_1", figure="36_1", script="figure_36_1",
               setting="SimpleConvNet, μP over width; ConvNet, Depth-μP over depth",
               shows="final loss against learning rate, directional sharpness gᵀHg/|g|² against step",
               claims={f"{quantity} {grows}": "same" for grows in grown for quantity in ("transfer", "directional")},
               runs=runs, minutes=(3, 5, 850))  # fmt: skip


def _linear2() -> list[Row]:
    widths = ("widths", ("16 32 64", "64 128 256 512 1024", "64 128 256 512 1024 2048 4096 8192"))
    runs = {param: Run("comparisons.convergence", f"--model linear2 --param {param} --learning-rate 1.5 --top-k 1 --seeds 4",
                       _over({"tiny": "--inputs 20 --samples 60", "cpu": "--inputs 100 --samples 400",
                              "gpu": "--inputs 100 --samples 1000"}, widths,
                             ("steps", ("12 --measure-every 3", "24 --measure-every 4", "24 --measure-every 4"))))
            for param in ("mup", "ntp")}  # fmt: skip
    swept = _over(dict.fromkeys(PRESETS, "--inputs 100 --samples 1000") | {"tiny": "--inputs 20 --samples 60"},
                  ("widths", ("16 32 64 128", "64 128 256 512 1024 2048", "64 128 256 512 1024 2048 4096 8192")),
                  ("learning-rates", ("0.5 1.1 2.4 5 11 24 50",) + ("0.5 0.75 1.1 1.6 2.4 3.5 5 7.5 11 16 24 35 50 75",) * 2),
                  ("seeds", ("4", "4", "4")), ("steps", ("20", "20", "20")))  # fmt: skip
    parts = {f"{part} {param}": "same" for part in ("gauss_newton", "residual") for param in ("mup", "ntp")}
    return [
        Row(name="6_2", figure="6_2", script="figure_6_2", setting="two-layer linear, MSE, random data", runs=runs,
            shows="largest eigenvalue of the Hessian's parts G and R against step, per width",
            claims=parts | {"residual ntp": "moves"}, minutes=(1, 5, 5)),
        Row(name="19_2", figure="19_2", script="figure_19_2", setting="two-layer linear, MSE, random data",
            shows="final loss against learning rate, per width", minutes=(1, 1, 3),
            claims={"transfer mup": "same", "transfer ntp": "moves"},
            runs={"": Run("comparisons.transfer", f"--model linear2 {FIXED} --sharpness-seeds 0", swept)}),
    ]  # fmt: skip


def _exponents() -> Row:
    plain = (
        "--model mlp --param sp ntp mup",
        {"tiny": "--widths 32 64 128 --seeds 2", "cpu": "", "gpu": "--widths 64 128 256 512 1024 2048 4096"},
    )
    residual = (
        "--model resmlp --param depth_mup alpha1",
        {"tiny": "--widths 32 64 128 --depths 4 8 16 --seeds 2", "cpu": "", "gpu": "--depths 4 8 16 32 64 128"},
    )
    return Row(name="21_1", figure="tables_21_1", script="figure_21_1", minutes=(1.5, 2, 6),
               setting="MLP: SP, NTP, μP; residual MLP: Depth-μP, α = 1; SGD, Adam",
               shows="table of scaling exponents of width and depth", claims={"exponents": "as derived"},
               runs={name: Run("comparisons.coord_check", *options)
                     for name, options in (("plain", plain), ("residual", residual))})  # fmt: skip


VARIANT, _variant = "17_1–19_1, 29_1–33_1", partial(_training, cpu=HALVED, minutes=(2, 3, 480))
ADAM = "--optimizer adam"
ROWS = Table("figure", [
    _training("1_1", "1_1", "SimpleConvNet, cross-entropy, batch 128"),
    _beside_limit("1_1_limit", "SimpleConvNet with average pooling, few photographs, full batches", "--pooling average",
                  minutes=(2, 9, 41)),
    _beside_limit("1_1_limit_max", "SimpleConvNet, few photographs, full batches", param="mup", minutes=(2, 11, 38)),
    _training("4_1", "4_1", "SimpleConvNet, cross-entropy, batch 128, augmented", "--augment"),
    _eigenvalues("3_1", "3_1", "ConvNet of three layers, μP, batch 256", 0.3, 256),
    _eigenvalues_beside_limit("3_1_limit", "SimpleConvNet, μP, few photographs, full batches", "conv", PHOTOGRAPHS, SHORT,
                              (1, 7, 22)),
    _eigenvalues_beside_limit("3_1_limit_deep", "ConvNet of three layers, μP, few photographs of 8×8, full batches",
                              "convnet --depth 3", SMALL_PHOTOGRAPHS,
                              (SHORT[0], "32 --measure-every 8", "64 --measure-every 8"), (1, 12, 30)),
    _eigenvalues("28_1", "28_1", "ConvNet of three layers, μP, batch 256, η0 = 0.46", 0.46, 256),
    _eigenvalues("35_1", "35_1", "ConvNet of three layers, μP, batch 128, η0 = 0.7", 0.7, 128),
    _gaps("3_2", "3_2", "SimpleConvNet, μP", "--model conv", 64, "8 16 32 64 128", 2),
    _gaps_to_limit(),
    _gaps("34_1", "34_1", "ConvNet of three layers, μP", "--model convnet --depth 3", 32, "8 16 32 64", 2),
    _depths("6_1", "6_1", "residual ConvNets, one and two convolutions per block; ViT, Adam",
            ("k1", "k2", "vit"), (4, 13, 1900)),
    _deep_beside_limit(),
    _depths("32_2", "32_2", "residual ConvNet, three convolutions per block", ("k3",), (2, 4, 1250)),
    *_linear2(),
    _gaps_over_depth("33_2_k1", "residual ConvNet, one convolution per block, Depth-μP", "--model resconvnet", BLOCKS),
    _gaps_over_depth("33_2_k2", "residual ConvNet, two convolutions per block, Depth-μP",
                     "--model resconvnet --block-size 2", BLOCKS),
    _gaps_over_depth("33_2_vit", "ViT, Adam, Depth-μP", f"--model vit {ADAM}",
                     ("1 2 4 8", "2 4 8 16", "6 12 24 48 96"), rate="0.1", batch="64"),
    _directional(),
    _exponents(),
    _variant("batch_32", VARIANT, "batches of 32", batch=32),
    _variant("batch_512", VARIANT, "batches of 512", batch=512,
              data=IMAGES | {"tiny": "--data patches10 --samples 256"}),
    _variant("without_augmentation", VARIANT, "as 1_1, seed 1: not augmented", "--seed 1"),
    _variant("momentum", VARIANT, "momentum 0.9", "--momentum 0.9", along="--learning-rate 0.05 0.7",
              rates=("0.05 0.2 0.8 3.2", *("0.05 0.1 0.2 0.4 0.8 1.6 3.2 6.4 12.8 25.6",) * 2)),
    _variant("mse", VARIANT, "MSE", loss="mse"),
    _variant("adam", VARIANT, "Adam, preconditioned Hessian", ADAM, along="--learning-rate 0.05",
              rates=("0.01 0.04 0.16 0.64", *("0.005 0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28",) * 2)),
    _variant("sp", VARIANT, "standard parametrization beside μP", param="mup sp"),
    _variant("random_features", VARIANT, "random features: the readout alone is trained", "--trained readout", claims={}),
    _variant("digits", VARIANT, "another data set: digits", data=DIGITS),
    _variant("mlp", VARIANT, "another network: MLP of two hidden layers", "--activation relu", model="mlp"),
    _variant("gpt", VARIANT, "GPT on text, Adam", ADAM, model="gpt", batch=64, data=TEXT, along="--learning-rate 0.05",
              rates=("0.01 0.04 0.16 0.64", *("0.005 0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28",) * 2), minutes=(4, 7, 600)),
])  # fmt: skip
