"""Forward and backward passes of composed functions, fused and not, beside torch.nn.GELU.

Rounds in which every function takes its turn, so that a slow spell of the machine hits all of
them; figures are medians over the rounds, as ratios to GELU's of the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bo_act.activations.module import Activation

FUNCTIONS = (
    "relu(x)",
    "swish(x)",
    "mul(sigmoid(x),erf(x))",
    "max(relu(x),tanh(x))",
    "mul(x,tanh(softplus(x)))",
    "add(mul(arctan(x),sigmoid(x)),max(erf(x),tanh(x)))",
)


def seconds(function: Callable[[Tensor], Tensor], x: Tensor, slope: Tensor, calls: int) -> float:
    """Return the seconds of a forward and a backward pass, of so many in a row."""
    wait = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        x.grad = None
        function(x).backward(slope)
    wait()
    return (time.perf_counter() - started) / calls


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", type=int, nargs="+", default=[128, 96, 16, 16])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--functions", nargs="+", default=list(FUNCTIONS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.shape, generator=generator)
    x = x.to(arguments.device, getattr(torch, arguments.dtype)).requires_grad_()
    slope = torch.randn(arguments.shape, generator=generator).to(x)

    gelu = nn.GELU()
    pairs = {text: (Activation(text), Activation(text, fused=True)) for text in arguments.functions}
    compiling = {}
    for text, (eager, fused) in pairs.items():
        started = time.perf_counter()
        seconds(fused, x, slope, 1)
        compiling[text] = time.perf_counter() - started
        seconds(eager, x, slope, 1)
    seconds(gelu, x, slope, 1)
    rows: dict[str, dict[str, list[float]]] = {
        text: {"eager": [], "fused": []} for text in arguments.functions
    }
    of_gelu = []
    for _ in range(arguments.rounds):
        of_gelu.append(seconds(gelu, x, slope, arguments.calls))
        for text, (eager, fused) in pairs.items():
            for name, one in (("eager", eager), ("fused", fused)):
                rows[text][name].append(seconds(one, x, slope, arguments.calls) / of_gelu[-1])
    found = {
        "device": torch.cuda.get_device_name() if x.device.type == "cuda" else "cpu",
        "threads": arguments.threads,
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "gelu_ms": 1000 * statistics.median(of_gelu),
        "functions": {
            text: {
                "eager": statistics.median(row["eager"]),
                "fused": statistics.median(row["fused"]),
                "compile_s": compiling[text],
                "why_not_fused": pairs[text][1].why_not_fused,
            }
            for text, row in rows.items()
        },
    }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['device']}, {arguments.threads} threads, {arguments.dtype}, {arguments.shape}")
    print(f"torch.nn.GELU: {found['gelu_ms']:.2f} ms forward and backward\n")
    print("| function | operator by operator | fused | compiling, s |\n|---|---:|---:|---:|")
    for text, row in found["functions"].items():
        note = "" if row["why_not_fused"] is None else f" ({row['why_not_fused']})"
        print(
            f"| `{text}` | {row['eager']:.2f} | {row['fused']:.2f}{note} | {row['compile_s']:.1f} |"
        )


if __name__ == "__main__":
    main()
