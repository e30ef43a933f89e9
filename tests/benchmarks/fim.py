"""How long the Fisher spectra take, and whether they agree with the plain way of computing them.

    python tests/benchmarks/fim.py --networks resnet56 vit --functions 4 --json

"Ours" is ``network_spectra`` as ``compute_features`` calls it for one function after another; the
plain way is in plain_fim.py. docs/results/speed.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from plain_fim import QUANTILES, compare, plain_way
from problems import FUNCTIONS, NETWORKS, Problem
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bo_act import __version__
from bo_act.features.fisher_worker import channels_last
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.kfac import kronecker_factors
from bo_act.fisher.options import FisherOptions
from bo_act.fisher.spectra import FimSpectra, network_spectra

OPTIONS = FisherOptions(fisher="empirical", quantiles=QUANTILES)


def our_way() -> Callable[[nn.Module, Tensor, Tensor], FimSpectra]:
    """Return what computes the spectra of one function after another, with nothing known yet.

    The true labels spare both ways the drawing of labels, and cost the one backward pass that the
    default (``fisher="mc"``) costs.
    """
    shared = InputFactorCache()

    def call(network: nn.Module, images: Tensor, labels: Tensor) -> FimSpectra:
        return network_spectra(
            channels_last(network), channels_last(images), labels, options=OPTIONS, shared=shared
        )

    return call


def our_traces(network: nn.Module, problem: Problem) -> dict[str, tuple[float, float]]:
    """Return the traces of both factors of each layer of weights, by name."""
    factors = kronecker_factors(network, problem.images, problem.labels, options=OPTIONS)
    return {
        layer.name: (torch.einsum("kii", layer.a).item(), torch.einsum("kii", layer.g).item())
        for layer in factors.layers
        if layer.kind == "weight"
    }


# --- what is measured ------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What one way took on one network.

    Attributes:
        network, way: their names.
        parameters: of the network.
        layers: that the way covers.
        seconds: of each repeat, a list with one number a function.
        cpu_seconds: the same in processor seconds, of all threads together.
        peak_memory: bytes at most during the first two functions, over those before; None where
            the system does not tell.
    """

    network: str
    way: str
    parameters: int
    layers: int
    seconds: list[list[float]]
    cpu_seconds: list[list[float]]
    peak_memory: int | None

    @property
    def first(self) -> float:
        """Median seconds of the first function, when nothing is known yet."""
        return median(times[0] for times in self.seconds)

    @property
    def later(self) -> list[float]:
        """Seconds of all other functions, or of the first where there is no other."""
        return [time for times in self.seconds for time in times[1:] or times]


@dataclass(frozen=True)
class Agreement:
    """How far the two ways are apart, on the layers that both cover.

    Attributes:
        network: its name.
        quantile_difference: largest absolute difference of a quantile of the log eigenvalues,
            over all functions, in the part of the spectrum that float32 resolves.
        compared: share of the quantiles that lie in that part, median over all functions.
        trace_difference: largest difference of a factor's trace, relative to it, for the first
            function.
    """

    network: str
    quantile_difference: float
    compared: float
    trace_difference: float


def timed(call: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """Return the call's result, its seconds, and its processor seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start, time.process_time() - cpu


WAYS: dict[str, Callable[[], Callable[..., Any]]] = {"ours": our_way, "plain": lambda: plain_way}


def measure(problem: Problem, options: argparse.Namespace) -> tuple[list[Result], Agreement]:
    """Run both ways on each function in turn, so that a slow spell of the machine hits both."""
    seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    cpu_seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    found: dict[str, Any] = {}
    worst, compared, traces = 0.0, [], {}
    for _ in range(options.repeat):
        calls = {way: make() for way, make in WAYS.items()}
        for way in WAYS:
            seconds[way].append([])
            cpu_seconds[way].append([])
        for function in FUNCTIONS[: options.functions]:
            for way, call in calls.items():
                run = partial(call, problem.network(function), problem.images, problem.labels)
                found[way], wall, cpu = timed(run, options.device)
                seconds[way][-1].append(wall)
                cpu_seconds[way][-1].append(cpu)
                print(f"{problem.name} {function} {way} {wall:.3f} s", file=sys.stderr)
            difference, share = compare(found["ours"], found["plain"])
            worst = max(worst, difference)
            compared.append(share)
            if function == FUNCTIONS[0]:
                traces = {name: layer.traces for name, layer in found["plain"].items()}
    network = problem.network(FUNCTIONS[0])
    results = [
        Result(
            network=problem.name,
            way=way,
            parameters=sum(weight.numel() for weight in network.parameters()),
            layers=len(found[way].layers if way == "ours" else found[way]),
            seconds=seconds[way],
            cpu_seconds=cpu_seconds[way],
            peak_memory=peak_memory(problem, way, options),
        )
        for way in WAYS
    ]
    ours = our_traces(network, problem)
    common = ours.keys() & traces.keys()
    pairs = torch.tensor([(ours[name], traces[name]) for name in common], dtype=torch.float64)
    apart = ((pairs[:, 0] - pairs[:, 1]).abs() / pairs[:, 1]).max().item()
    return results, Agreement(problem.name, worst, median(compared), apart)


def peak_memory(problem: Problem, way: str, options: argparse.Namespace) -> int | None:
    """Return the bytes that the first two functions took at most, in a new process on the CPU."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_two(problem, way)
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        return None
    command = [sys.executable, __file__, "--networks", problem.name, "--peak", way]
    command += ["--batch", str(options.batch), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the process that measures memory failed:\n{done.stderr}")
    return int(done.stdout)


def peak_of_this_process(problem: Problem, way: str) -> int:
    """Do the same here, from Linux's own count.

    ``getrusage`` will not do: what it calls the maximum of a new process is at least what its
    parent had.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    run_two(problem, way)
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Return resident memory of this process in bytes, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def run_two(problem: Problem, way: str) -> None:
    """Run one way on the first two functions."""
    call = WAYS[way]()
    for function in FUNCTIONS[:2]:
        call(problem.network(function), problem.images, problem.labels)


# --- what is shown ---------------------------------------------------------------------------


def table(results: Sequence[Result], agreements: Sequence[Agreement]) -> Table:
    """Return the results as a table, two lines a network."""
    shown = Table()
    for column in (
        "network", "parameters", "implementation", "layers", "first, s",
        "later, s (min to max)",
        "ratio", "peak, MB", "quantiles", "trace",
    ):  # fmt: skip
        shown.add_column(
            column, justify="left" if column in {"network", "implementation"} else "right"
        )
    for ours, plain, agreement in zip(results[::2], results[1::2], agreements, strict=True):
        for result in (ours, plain):
            times, mine = result.later, result is ours
            shown.add_row(
                result.network if mine else "",
                f"{result.parameters:,}" if mine else "",
                "bo-act" if mine else result.way,
                str(result.layers),
                f"{result.first:.3f}",
                f"{median(times):.3f} ({min(times):.3f} to {max(times):.3f})",
                f"{median(plain.later) / median(ours.later):.1f}" if mine else "",
                "" if result.peak_memory is None else f"{result.peak_memory / 1e6:.0f}",
                f"{agreement.quantile_difference:.1e}" if mine else "",
                f"{agreement.trace_difference:.1e}" if mine else "",
            )
        shown.add_section()
    return shown


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=128, help="images (default: 128)")
    parser.add_argument(
        "--functions", type=int, default=4, choices=range(1, len(FUNCTIONS) + 1),
        help="activation functions (default: 4)",
    )  # fmt: skip
    parser.add_argument("--repeat", type=int, default=1, help="runs over all of them (default: 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--json", action="store_true", help="for machines, on stdout")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.batch, options.repeat, options.threads) < 1:
        parser.error("--batch, --repeat and --threads are at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its results."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    problems = [Problem.make(name, options.batch, options.device) for name in options.networks]
    for way in WAYS:  # libraries load their parts when these are first used
        run_two(Problem.make("mlp", 2, options.device), way)
    if options.peak:
        print(peak_of_this_process(problems[0], options.peak))
        return
    cuda = options.device == "cuda"
    head = {
        "bo_act": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "threads": options.threads,
        "batch": options.batch,
        "functions": options.functions,
        "repeat": options.repeat,
    }
    results: list[Result] = []
    agreements: list[Agreement] = []
    for problem in problems:
        pair, agreement = measure(problem, options)
        results += pair
        agreements.append(agreement)
    if options.json:
        kinds = {"results": map(asdict, results), "agreement": map(asdict, agreements)}
        print(json.dumps({"head": head} | {key: list(rows) for key, rows in kinds.items()}))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(", ".join(f"{key} {value}" for key, value in head.items()))
    console.print(table(results, agreements))


if __name__ == "__main__":
    main()
