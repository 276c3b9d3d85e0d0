"""What a user can do about a refusal, in terms of the model and of its export."""

from __future__ import annotations

UNTIE = "give each its own copy of the weight, or leave the two apart: a tied weight is not merged"
OTHER_READER = "let the other reader compute its own copy, or remove the output, before exporting"
OUTPUT = "remove the inner result from the model's outputs: a fused op does not write it"
ONE_TYPE = "export the whole model in one floating-point type, without mixed precision here"
FLOAT_TYPE = "export the model in fp32, fp16, or bf16"
FP32_INSIDE = "compute statistics in fp32 or in the model's own type"
FLOAT_MASK = "pass the mask in the model's float type: 0 where allowed, its lowest value elsewhere"
LOWEST = "mask with the lowest number of the type (torch.finfo(dtype).min) or with -inf"
BOOL_MASK = "pass a boolean mask, or a float one that broadcasts over batch and heads"
FIXED = "export with a fixed number of heads and a fixed head size; only batch and length may vary"
RANK = "export with the shapes of the inputs, so that every rank is known"
LAST_AXIS = "normalise over the last axis: move it there with a Transpose around the layer"
KEEP_DIMS = "reduce with keepdims=1"
CONSTANT = "export with constant folding, so that this value is an initializer"
VECTOR = "give the weight the shape [hidden size]: one value for each feature"
MATRIX = "use a matrix [in, out] as the weight of the layer"
EXACT = "use the constant that the formula has"
ONE_FORM = "use one form of the activation in the whole model"
HALVES = "turn halves of each head (rotate_half) or pairs of neighbours, over all of its size"
FOUR = "call Attention with q, k, v of four dimensions [batch, heads, length, size], returning y"
HEADS = "let q, k, and v agree: equal head sizes, and a number of heads that kv heads divide"
ONE_INPUT = "project from one tensor: compute the projections of the same norm's output"
OPSET = "export with opset 17 or later"
REFUTED = "report it with the model: the fused numbers differ from the original's"
SPELLING = "write it in the common form, or report the model so that opfuse learns this one"
SQUARE = "pass an explicit mask where queries and keys differ in number"
POSITIVE = "scale the scores by a positive constant"


def of_mismatch(found: str, reason: str) -> str:
    """Return the advice for a structure that differs.

    Args:
        found: The operator that stands in the way; empty where none does.
        reason: What the matcher says about it.
    """
    if reason.startswith("is computed"):
        return CONSTANT
    if reason.startswith(("is a graph input", "is a constant")):
        return "let the model compute it: part of the subgraph is missing from the export"
    if found == "Cast":
        return ONE_TYPE
    if found in ("Dropout", "Identity"):
        return "export in evaluation mode (model.eval())"
    if found in ("QuantizeLinear", "DequantizeLinear"):
        return "quantise behind the fused op, not inside of it"
    return f"take the {found} out of the subgraph, or {SPELLING}" if found else SPELLING
