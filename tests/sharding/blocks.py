"""An attention block in ONNX's text format, with its weights."""

from __future__ import annotations


def attention(heads: int, few: int, size: int, *, split: str = "", mask: str = "") -> str:
    """Attention over ``qkv`` [B, S, ...] written out, with the heads copied where ``few`` are."""
    group = heads // few
    copies = [
        f"{x}5 = Unsqueeze({x}, [2])\n{x}w = Expand({x}5, [1, 1, {group}, 1, 1])\n"
        f"{x}flat = Reshape({x}w, [0, {heads}, -1, {size}])\n"
        if group > 1
        else f"{x}flat = Identity({x})\n"
        for x in ("k", "v")
    ]
    split = split or (
        f"qp, kp, vp = Split<axis=-1>(qkv, [{heads * size}, {few * size}, {few * size}])\n"
        f"q4 = Reshape(qp, [0, 0, {heads}, {size}])\nk4 = Reshape(kp, [0, 0, {few}, {size}])\n"
        f"v4 = Reshape(vp, [0, 0, {few}, {size}])\n"
    )
    turn = "".join(f"{x} = Transpose<perm=[0, 2, 1, 3]>({x}4)\n" for x in "qkv")
    scores = f"logits = Add(scaled, {mask})\n" if mask else "logits = Identity(scaled)\n"
    return (
        split
        + turn
        + "".join(copies)
        + "kt = Transpose<perm=[0, 1, 3, 2]>(kflat)\nraw = MatMul(q, kt)\nscaled = Mul(raw, 0.5)\n"
        + scores
        + "p = Softmax<axis=-1>(logits)\no = MatMul(p, vflat)\n"
        "o4 = Transpose<perm=[0, 2, 1, 3]>(o)\n"
        f"flat = Reshape(o4, [0, 0, {heads * size}])\n"
    )


def block(
    heads: int, few: int, size: int = 4, hidden: int = 6, **options: str
) -> dict[str, object]:
    """A packed projection with a bias, attention, and an output projection with a bias."""
    width = (heads + 2 * few) * size
    text = "raw_qkv = MatMul(x, w)\nqkv = Add(raw_qkv, b)\n" + attention(
        heads, few, size, **options
    )
    text += "part = MatMul(flat, wo)\ny = Add(part, bo)\n"
    weights = {"w": (hidden, width), "b": (width,)}
    weights |= {"wo": (heads * size, hidden), "bo": (hidden,)}
    return {"text": text, "inputs": f"T[B, S, {hidden}] x", "weights": weights}
