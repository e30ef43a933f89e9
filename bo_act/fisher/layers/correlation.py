"""Input factors of convolutions without patches, from the images' autocorrelations.

Symbols, with shapes (those of ``bo_act.fisher.layers.patches`` besides):

    H, W     pixels of an image; one-dimensional layers have W = 1
    u        a tap: one place in the kernel
    s        stride, φ = a phase: one of the sub-lattices of pixels of a stride
    q, f     a pixel, a frequency

Copying and multiplying patches costs 2·k·p² operations per position. But two taps u and u' see the
same image, shifted: their block is an autocorrelation of the image,

    S(δ) = sum over images and pixels q of x[q] x[q + δ]ᵀ,   δ = u' - u,

so a 3x3 kernel has 13 blocks instead of 81. A tap does not see the rows at the far side of the
image; their products are subtracted exactly. All S(δ) come from the discrete Fourier transforms
X(f), as 1/n · sum over f of Re(conj(X) Xᵀ exp(iθδ)): one product of the images' coefficients per
frequency, for any number of offsets. A stride of s makes s² images of every s-th pixel, correlated
with one another.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import product

import torch
from torch import Tensor

from bo_act.fisher.layers.patches import Convolution, double

__all__ = ["correlated_products", "worthwhile"]

# Bytes of Fourier coefficients and their products at a time.
_CHUNK = 1 << 25

# Channels per group from which matrix products beat copies.
_FEW_CHANNELS = 8


def worthwhile(x: Tensor, convolution: Convolution) -> bool:
    """Tell whether correlations take fewer operations than patches."""
    c = x.shape[1] // convolution.groups
    if len(convolution.kernel) > 2 or c < _FEW_CHANNELS:
        return False
    lattice = _Lattice(x, convolution)
    if any(count <= reach for count, reach in zip(lattice.counts, lattice.reach, strict=True)):
        return False  # mostly border
    plain = math.prod(lattice.counts) * (c * len(lattice.taps)) ** 2
    phases = len(lattice.phases)
    frequencies = lattice.frequencies[0] * lattice.frequencies[1]
    products = frequencies * c * c * (2 * phases + 2 * phases * (phases - 1))
    height, width = lattice.sizes
    transforms = 2 * c * phases * lattice.frequencies[0] * width * (
        height + 2 * lattice.frequencies[1]
    )  # fmt: skip
    return products + transforms < plain


Phase = tuple[int, int]
Key = tuple[Phase, Phase, tuple[int, int]]


class _Lattice:
    """Taps of a convolution of one or two axes, as shifts of sub-lattices of the image.

    Output position i and tap u meet at pixel s·i + t, t = dilation·u - padding, which is pixel
    i + a of phase φ, where t = s·a + φ.

    Attributes:
        taps: (phase, a) of each tap, both pairs (of the vertical and horizontal axis).
        phases: those of any tap.
        counts: output positions along both axes.
        image: H, W.
        sizes: of the largest phase.
        reach: largest shift between two taps, along both axes.
        period: n of both axes: no shift between two taps wraps around.
        frequencies: (n1 // 2 + 1, n2), enough for a real image.
    """

    def __init__(self, x: Tensor, convolution: Convolution) -> None:
        def two(values: tuple[int, ...]) -> tuple[int, int]:
            return (values[0], 1) if len(values) == 1 else (values[0], values[1])

        self.image = two(tuple(x.shape[2:]))
        self.counts = two(convolution.outputs(tuple(x.shape[2:])))
        self.stride = two(convolution.stride)
        kernel, dilation = two(convolution.kernel), two(convolution.dilation)
        pads = (*convolution.padding, (0, 0))[:2]
        axes: list[list[tuple[int, int]]] = []
        for axis in range(2):
            shifts = [dilation[axis] * u - pads[axis][0] for u in range(kernel[axis])]
            axes.append([(t % self.stride[axis], t // self.stride[axis]) for t in shifts])
        self.taps = [
            ((first[0], second[0]), (first[1], second[1])) for first, second in product(*axes)
        ]
        self.phases = sorted({phase for phase, _ in self.taps})
        self.sizes = tuple(-(-self.image[axis] // self.stride[axis]) for axis in range(2))
        self.reach = [max(a for _, a in axis) - min(a for _, a in axis) for axis in axes]
        self.period = (self.sizes[0] + self.reach[0], self.sizes[1] + self.reach[1])
        self.frequencies = (self.period[0] // 2 + 1, self.period[1])

    def size(self, phase: Phase) -> tuple[int, int]:
        """Return the pixels of a phase along both axes."""
        return (
            -(-(self.image[0] - phase[0]) // self.stride[0]),
            -(-(self.image[1] - phase[1]) // self.stride[1]),
        )

    def seen(self, phase: Phase, a: tuple[int, int]) -> list[range]:
        """Return the rows and columns of a phase inside a tap's view."""
        size = self.size(phase)
        return [
            range(max(a[axis], 0), max(0, min(a[axis] + self.counts[axis], size[axis])))
            for axis in range(2)
        ]


def correlated_products(x: Tensor, convolution: Convolution, bias_input: float | None) -> Tensor:
    """Return the result of ``patch_products``, for layers of one or two spatial axes."""
    if convolution.mode != "constant":
        x, convolution = convolution.padded(x)
    lattice = _Lattice(x, convolution)
    if x.dim() == 3:
        x = x.unsqueeze(3)
    k, taps = convolution.groups, len(lattice.taps)
    c = x.shape[1] // k
    x = x.permute(0, 2, 3, 1)
    images = {
        phase: x[:, phase[0] :: lattice.stride[0], phase[1] :: lattice.stride[1]].contiguous()
        for phase in lattice.phases
    }
    # Pairs of taps by correlation; each pair once, its transpose is the other half.
    pairs: dict[Key, list[tuple[int, int]]] = defaultdict(list)
    for left, right in product(range(taps), repeat=2):
        (phase, a), (other, b) = lattice.taps[left], lattice.taps[right]
        delta = (b[0] - a[0], b[1] - a[1])
        if (phase, (0, 0)) < (other, delta) or left == right:
            pairs[phase, other, delta].append((left, right))
    full = _correlations(images, list(pairs), lattice, k)

    device = full[next(iter(full))].device
    blocks = torch.empty(k, taps, c, taps, c, dtype=torch.float64, device=device)
    for key, members in pairs.items():
        border = _Border(images, key, lattice, k)
        for left, right in members:
            block = border.within(full[key], lattice.taps[left], lattice.taps[right])
            blocks[:, left, :, right] = block
            if left != right:
                blocks[:, right, :, left] = block.mT
    size = c * taps + (bias_input is not None)
    result = torch.empty(k, size, size, dtype=torch.float64, device=device)
    weights = result[:, : c * taps, : c * taps]
    # The order of a layer's weight: channels first, taps within them.
    weights.unflatten(2, (c, taps)).unflatten(1, (c, taps)).copy_(blocks.permute(0, 2, 1, 4, 3))
    if bias_input is not None:
        sums = {phase: double(image.sum(0)) for phase, image in images.items()}
        for tap, (phase, a) in enumerate(lattice.taps):
            rows, columns = lattice.seen(phase, a)
            seen = sums[phase][rows.start : rows.stop, columns.start : columns.stop].sum((0, 1))
            result[:, -1, : c * taps].view(k, c, taps)[:, :, tap] = bias_input * seen.view(k, c)
        result[:, : c * taps, -1] = result[:, -1, : c * taps]
        result[:, -1, -1] = bias_input * bias_input * x.shape[0] * math.prod(lattice.counts)
    return result


def _correlations(
    images: dict[Phase, Tensor], keys: list[Key], lattice: _Lattice, k: int
) -> dict[Key, Tensor]:
    """Return S(δ), (k, c, c) float64, for each key, over all pixels of both phases."""
    like = next(iter(images.values()))
    batch, c = like.shape[0], like.shape[-1] // k
    n1, n2 = lattice.period
    halves = lattice.frequencies[0]
    theta = [2 * math.pi / n for n in (n1, n2)]
    result: dict[Key, Tensor] = {}
    offsets: dict[tuple[Phase, Phase], list[tuple[int, int]]] = defaultdict(list)
    for phase, other, delta in keys:
        offsets[phase, other].append(delta)
    # A few rows of frequencies at a time bound the memory of large images.
    row = n2 * k * c * (c + 2 * batch * len(images)) * like.element_size()
    step = max(1, _CHUNK // row)
    columns = torch.arange(n2, device="cpu", dtype=torch.float64) * theta[1]
    for start in range(0, halves, step):
        end = min(start + step, halves)
        chosen = torch.arange(start, end, device="cpu", dtype=torch.float64)
        spectra = {
            phase: _transform(image, chosen * theta[0], n2, k) for phase, image in images.items()
        }
        for (phase, other), deltas in offsets.items():
            where = torch.tensor(deltas, device="cpu", dtype=torch.float64)
            angle = (
                where[:, :1, None] * (chosen * theta[0])[:, None] + where[:, 1:, None] * columns
            ).flatten(1)  # (offsets, frequencies)
            # A row represents itself and its conjugate; rows 0 and n1/2 are their own conjugates.
            single = (chosen == 0) | (2 * chosen == n1)
            weight = ((2.0 - single.double()) / (n1 * n2)).repeat_interleave(n2)
            cosine = (torch.cos(angle) * weight).to(like)
            sine = (torch.sin(angle) * weight).to(like)
            real, imaginary = spectra[phase]
            if phase == other:
                # Rᵀ(R + I) + Iᵀ(I - R): its symmetric part is even, its antisymmetric one odd, and
                # two products do the work of three.
                both = real.mT @ (real + imaginary)
                both.baddbmm_(imaginary.mT, imaginary - real)
                both = both.view(cosine.shape[1], -1)
                part = ((cosine - sine) @ both).view(len(deltas), k, c, c)
                skew = ((cosine + sine) @ both).view_as(part).mT
                values = (part + skew).mul_(0.5)
            else:
                even = real.mT @ spectra[other][0]
                even.baddbmm_(imaginary.mT, spectra[other][1])
                odd = real.mT @ spectra[other][1]
                odd.baddbmm_(imaginary.mT, spectra[other][0], alpha=-1)
                part = cosine @ even.view(cosine.shape[1], -1)
                part = part.addmm_(sine, odd.view(sine.shape[1], -1), alpha=-1)
                values = part.view(len(deltas), k, c, c)
            for delta, value in zip(deltas, double(values), strict=True):
                key = (phase, other, delta)
                result[key] = result[key] + value if key in result else value
    return result


def _transform(image: Tensor, angles: Tensor, n2: int, k: int) -> tuple[Tensor, Tensor]:
    """Return real and imaginary parts of the Fourier coefficients at some rows of frequencies.

    Both axes are products with small matrices: for a network's layers that is faster than a fast
    Fourier transform, and the result is already in the order of the later products.

    Args:
        image: (B, H, W, C).
        angles: (rows,) radians a pixel, along the vertical axis.
        n2: period, and frequencies, along the horizontal axis.
        k: groups.

    Returns:
        Two views (rows · n2 · k, B, c).
    """
    batch, height, width, channels = image.shape
    vertical = angles[:, None] * torch.arange(height, device="cpu")
    first = torch.stack([torch.cos(vertical), -torch.sin(vertical)], dim=1).flatten(0, 1)
    steps = torch.arange(n2, device="cpu", dtype=torch.float64) * (2 * math.pi / n2)
    horizontal = steps[:, None] * torch.arange(width, device="cpu")
    cosine, sine = torch.cos(horizontal), torch.sin(horizontal)
    second = torch.stack(
        [torch.cat([cosine, sine], dim=1), torch.cat([-sine, cosine], dim=1)], dim=1
    ).flatten(0, 1)
    rows = first.to(image) @ image.flatten(2)  # (B, 2 rows, W·C)
    both = second.to(image) @ rows.view(batch * len(angles), 2 * width, channels)
    both = both.view(batch, -1, 2, k, channels // k)  # (B, frequencies, 2, k, c)
    parts = []
    for part in range(2):
        view = both[:, :, part].permute(1, 2, 0, 3)
        parts.append(view.reshape(-1, batch, channels // k) if k > 1 else view.flatten(0, 1))
    return parts[0], parts[1]


class _Border:
    """Products of pixels outside the view of a pair of taps, for one key of correlations."""

    def __init__(self, images: dict[Phase, Tensor], key: Key, lattice: _Lattice, k: int) -> None:
        phase, other, self.delta = key
        self.left, self.right, self.lattice, self.k = images[phase], images[other], lattice, k
        sizes, others = lattice.size(phase), lattice.size(other)
        # Pixels q of the left image for which q + δ is a pixel of the right one.
        self.full = [
            range(max(0, -shift), max(0, min(size, other - shift)))
            for size, other, shift in zip(sizes, others, self.delta, strict=True)
        ]
        self.kept: dict[tuple[int | None, int | None], Tensor] = {}

    def within(
        self, correlation: Tensor, left: tuple[Phase, Phase], right: tuple[Phase, Phase]
    ) -> Tensor:
        """Return the correlation without the pixels outside both taps' view, (k, c, c)."""
        lost = []
        for full, seen, other, delta in zip(
            self.full, self.lattice.seen(*left), self.lattice.seen(*right), self.delta, strict=True
        ):
            lost.append([i for i in full if i not in seen or i + delta not in other])
        terms = [(row, None) for row in lost[0]] + [(None, column) for column in lost[1]]
        for row, column in terms:
            correlation = correlation - self._strip(row, column)
        for row, column in product(*lost):
            correlation = correlation + self._strip(row, column)  # subtracted twice above
        return correlation

    def _strip(self, row: int | None, column: int | None) -> Tensor:
        """Return the sum over one row, one column, or their crossing; (k, c, c) float64."""
        if (row, column) not in self.kept:
            spans = [
                range(index, index + 1) if index is not None else whole
                for index, whole in zip((row, column), self.full, strict=True)
            ]
            ends = []
            for image, delta in ((self.left, (0, 0)), (self.right, self.delta)):
                part = image[
                    :,
                    spans[0].start + delta[0] : spans[0].stop + delta[0],
                    spans[1].start + delta[1] : spans[1].stop + delta[1],
                ]
                ends.append(part.flatten(0, 2).unflatten(1, (self.k, -1)).transpose(0, 1))
            self.kept[row, column] = double(ends[0].mT @ ends[1])
        return self.kept[row, column]
