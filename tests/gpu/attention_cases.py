"""Random attentions for the plugin and their float64 reference."""

from __future__ import annotations

from dataclasses import dataclass

from tests.gpu.harness import ROUNDING, Buffers, Runner, torch

FLOAT32_LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Case:
    """One attention; ``mask`` names axes of [b, h, q, k] that the mask has, as in "bk"."""

    queries: int
    keys: int
    size: int = 64
    value_size: int = 0  # 0: as ``size``
    batch: int = 2
    heads: int = 4
    kv_heads: int = 4
    causal: bool = False
    window: int = 0
    layout: str = "BHSD"
    mask: str = ""
    float_mask: bool = False
    padding: float = 0.0  # what a mask of padding, "bk", is filled with; 0: it is random
    softcap: float = 0.0
    nan_guard: int = 0  # 1: rows whose weights are NaN give 0
    slopes: bool = False
    lengths: int = 0  # 1: each batch has its own number of keys; 2: one number for all
    scale: float = 0.0  # 0: 1 / sqrt(size)
    offset: int = 0  # elements off alignment

    def layouts(self) -> list[str]:
        """The axes of q, k, v, and y."""
        parts = self.layout.split(",")
        return parts * 4 if len(parts) == 1 else parts

    def attributes(self) -> dict[str, int | float | str]:
        """The op's attributes."""
        return {
            "num_heads": self.heads,
            "kv_num_heads": self.kv_heads,
            "scale": self.scale or self.size**-0.5,
            "causal": int(self.causal),
            "window": self.window,
            "softcap": self.softcap,
            "nan_guard": self.nan_guard,
            "slopes": int(self.slopes),
            **({"lengths": 1} if self.lengths else {}),  # which older libraries do not know
            "layout": self.layout,
        }


def turned(tensor: torch.Tensor, axes: str) -> torch.Tensor:
    """[batch, heads, positions, size] as ``axes`` have it, or the other way round."""
    return tensor if axes == "BHSD" else tensor.transpose(1, 2)


def padding_of(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """Hides more keys of each sequence than of the one before, and all of the last one's."""
    lengths = torch.linspace(case.keys, 0, case.batch, device="cuda").long()
    hidden = torch.arange(case.keys, device="cuda") >= lengths[:, None]
    mask = torch.zeros(case.batch, 1, 1, case.keys, device="cuda")
    mask.masked_fill_(hidden[:, None, None], case.padding)
    return mask if case.float_mask else mask.to(dtype)


def mask_of(case: Case, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Random numbers, a quarter of them as low as masks are, and one query that sees nothing."""
    if case.padding:
        return padding_of(case, dtype)
    full = {"b": case.batch, "h": case.heads, "q": case.queries, "k": case.keys}
    shape = [size if axis in case.mask else 1 for axis, size in full.items()]
    mask = torch.randn(shape, generator=generator, device="cuda")
    lowest = FLOAT32_LOWEST if case.float_mask else -torch.inf
    hidden = torch.rand(shape, generator=generator, device="cuda") < 0.25
    if "k" in case.mask and not case.nan_guard:
        hidden[..., 0] = False
    mask.masked_fill_(hidden, lowest)
    if "q" in case.mask and case.nan_guard:
        mask[:, :, case.queries // 2] = lowest
    return mask if case.float_mask else mask.to(dtype)


def lengths_of(case: Case) -> torch.Tensor | None:
    """Some of the keys, none, all, one, and numbers that there are not, in either type."""
    if not case.lengths:
        return None
    kinds = [case.keys // 2 | 1, 0, case.keys, 1, case.keys + 3, case.keys - 1, -1]
    first = case.keys + case.queries + case.size + case.kv_heads
    count = case.batch if case.lengths == 1 else 1
    kinds = [kinds[(first + i) % len(kinds)] for i in range(count)]
    dtype = torch.int64 if case.queries % 2 else torch.int32
    return torch.tensor(kinds, dtype=dtype, device="cuda")


Optional = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def optional_inputs(
    case: Case, dtype: torch.dtype, generator: torch.Generator, buffers: Buffers
) -> Optional:
    """The mask, the slopes, and the lengths; slopes in fp32 beside an fp32 mask, or alone."""
    mask = buffers.place(mask_of(case, dtype, generator)) if case.mask else None
    slopes = None
    if case.slopes:
        slopes = torch.rand(case.heads, generator=generator, device="cuda")
        slopes = buffers.place(slopes if case.float_mask or mask is None else slopes.to(dtype))
    return mask, slopes, lengths_of(case)


def reference(
    case: Case,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    slopes: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns y and the same with |v| for v, which bounds the rounding error; both float64."""
    group = case.heads // case.kv_heads
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    scores = q.double() @ k.transpose(-1, -2) * (case.scale or case.size**-0.5)
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    if mask is not None:  # in fp32, whose lowest number absorbs any score
        scores = (scores.float() + mask.float()).double()
    columns = torch.arange(case.keys, device="cuda")
    count = case.keys if lengths is None else lengths[:, None, None, None]
    rows = torch.arange(case.queries, device="cuda")[:, None] + count - case.queries
    ahead = columns - rows
    if slopes is not None:
        scores -= slopes.double()[:, None, None] * ahead.abs()
    if case.causal:
        scores.masked_fill_(ahead > 0, -torch.inf)
    if case.window:
        scores.masked_fill_(ahead.abs() >= case.window, -torch.inf)
    if lengths is not None:
        scores.masked_fill_(columns >= count, -torch.inf)
    weights = scores.softmax(-1)
    if case.nan_guard:
        weights = weights.nan_to_num(0.0)
    return weights @ v, weights @ v.abs()


def check(
    runner: Runner, generator: torch.Generator, case: Case, dtype: torch.dtype, label: str = ""
) -> None:
    """Runs the plugin on fresh inputs and compares, element by element."""
    buffers = Buffers(case.offset)

    *of_inputs, of_y = case.layouts()

    def place(axes: str, heads: int, rows: int, size: int) -> torch.Tensor:
        values = torch.randn(case.batch, heads, rows, size, generator=generator, device="cuda")
        return buffers.place(turned(values.to(dtype), axes))

    value_size = case.value_size or case.size
    sizes = (
        (case.heads, case.queries, case.size),
        (case.kv_heads, case.keys, case.size),
        (case.kv_heads, case.keys, value_size),
    )
    tensors = [place(axes, *shape) for axes, shape in zip(of_inputs, sizes, strict=True)]
    more = optional_inputs(case, dtype, generator, buffers)
    empty = torch.empty(case.batch, case.heads, case.queries, value_size, device="meta")
    y = buffers.empty(tuple(turned(empty, of_y).shape), dtype)
    inputs = [*tensors, *(given for given in more if given is not None)]
    runner("FlashAttention", case.attributes(), inputs, [y])
    q, k, v = (turned(*pair) for pair in zip(tensors, of_inputs, strict=True))
    wanted = reference(case, q, k, v, *more)
    expected, size = (turned(tensor, of_y) for tensor in wanted)
    buffers.check_guards()
    compare(runner, case, y, expected, size, label)


def check_packed(
    runner: Runner, generator: torch.Generator, case: Case, dtype: torch.dtype
) -> None:
    """The same for PackedAttention, whose q, k, and v lie side by side."""
    buffers = Buffers(case.offset)
    heads = case.heads + 2 * case.kv_heads
    shape = (case.batch, case.queries, heads, case.size)
    values = torch.randn(shape, generator=generator, device="cuda").to(dtype)
    qkv = buffers.place(values.flatten(2))
    more = optional_inputs(case, dtype, generator, buffers)
    y = buffers.empty((*shape[:2], case.heads, case.size), dtype)
    attributes = {name: v for name, v in case.attributes().items() if name != "layout"}
    given = [qkv, *(tensor for tensor in more if tensor is not None)]
    runner("PackedAttention", attributes, given, [y])
    buffers.check_guards()
    parts = values.split((case.heads, case.kv_heads, case.kv_heads), 2)
    expected, size = reference(case, *(part.transpose(1, 2) for part in parts), *more)
    compare(runner, case, y, expected.transpose(1, 2), size.transpose(1, 2), "packed")


def compare(
    runner: Runner,
    case: Case,
    y: torch.Tensor,
    expected: torch.Tensor,
    size: torch.Tensor,
    label: str,
) -> None:
    """``y`` is ``expected`` within what rounding explains; keeps the error."""
    dtype = y.dtype
    assert torch.equal(y.isnan(), expected.isnan()), f"{case}: NaN at other places"
    error = (y.double() - expected).abs().nan_to_num(0.0)
    # One rounding of the weights and one of y; fp32 sums; weights below 6e-5 are subnormal in fp16.
    allowed = (2.02 * ROUNDING[dtype] + 2e-5) * size + 1e-7 * case.keys**0.5
    over = (error / allowed).nan_to_num(0.0).max().item()
    key = f"FlashAttention {label} {str(dtype).removeprefix('torch.')}"
    relative = (error.square().sum() / expected.nan_to_num(0.0).square().sum().clamp(1e-9)).sqrt()
    runner.worst[key] = max(runner.worst.get(key, 0.0), relative.item())
    assert over <= 1, f"{case}: {over:.2f} times the allowed error"
