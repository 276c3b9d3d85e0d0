"""What a user can do about a refusal, in terms of the model and of its export."""

from __future__ import annotations

ONE_TYPE = "export the whole model in one floating-point type, without mixed precision here"
SPELLING = "write it in the common form, or report the model so that opfuse learns this one"

# A phrase of a reason, and what to do about it; the first that is found counts.
_BY_REASON = (
    ("in this model already", "use one form of this op in the whole model"),
    ("inside it leaves the graph", "remove that inner result from the model's outputs"),
    ("inside it is also read by", "give the other reader its own copy, or drop it before export"),
    ("is also read by", "untie the weight: give each reader its own copy"),
    ("is read as well", "drop the extra outputs of the norm before export"),
    ("weights differ in type", ONE_TYPE),
    ("is not floating-point", "pass the mask in the model's float type: 0 or its lowest value"),
    ("joins to the scores", "drop the column of the sinks from the probabilities"),
    ("want one column", "join one score of each head, of shape [batch, heads, queries, 1]"),
    ("probabilities", "read the probabilities of all keys, and of nothing else"),
    ("beside another mask", "mask with the lowest number of the type, or with -inf"),
    ("may have masked before", "mask once, with the lowest number of the type or with -inf"),
    ("which may hide keys too", "add a constant bias, or mask by one mask in all"),
    ("which scores may reach", "mask with the lowest number of the type, or with -inf"),
    ("clamps the scores", "clamp in fp32 to its lowest number alone, or not at all"),
    ("no scale of each head", "scale by a constant, or by one value for each head"),
    ("axes of windows", "pass a mask that is one for all windows, or give it four dimensions"),
    ("more than one size", "export with fixed sizes but for one: these axes become four"),
    ("ends after", "pass a mask of as many keys as there are, and name its size like theirs"),
    ("mask ", "pass a mask that broadcasts over batch and heads: [batch, 1, queries, keys]"),
    ("differ in type", ONE_TYPE),
    ("the type of", "export with the types of all inputs, so that types can be inferred"),
    ("is no plain x W + b", "export with alpha and beta of 1, and the input as it is"),
    ("is neither fp32, fp16, nor bf16", "export the model in fp32, fp16, or bf16"),
    ("has another type than its input", ONE_TYPE),
    ("neither of the input's type nor fp32", ONE_TYPE),
    ("another type than fp32", "compute it in fp32 or in the model's own type"),
    ("reduces over axes", "normalise over the last axis: transpose around the layer"),
    ("works along axis", "work along the last axis: transpose around the layer"),
    ("of q and k have another epsilon", "give the norms of q and k one epsilon"),
    ("epsilon", "add epsilon to the mean square, under the root"),
    ("drops the axis", "reduce with keepdims=1"),
    ("is not a scalar constant", "export with constant folding: this must be one constant"),
    ("want a number", "export with a fixed number of heads and a fixed size, or state the shape"),
    ("rank of", "export with the ranks of all inputs, so that shapes can be inferred"),
    ("ranks", "use four dimensions: [batch, heads, length, size]"),
    ("want rank", "use four dimensions: [batch, heads, length, size]"),
    ("needs opset", "export with a later opset"),
    ("constant ", "use the value of the formula; another makes it another function"),
    ("widens", "give the weight one value for each feature, of shape [hidden size]"),
    ("has shape", "give the weight one value for each feature, of shape [hidden size]"),
    ("is not a matrix", "use a matrix [in, out] as the weight of the layer"),
    ("bias is", "give the bias the shape [out]"),
    ("two equal halves", "turn the two halves of the rotated part of each head"),
    ("want it added", "add it, and negate the sines where it has to turn the other way"),
    ("in the other order", "concatenate the part with minus first, as the two came"),
    ("pairs", "turn pairs of neighbours or two halves over all of the rotated part"),
    ("the part that turns", "split each head into the part that turns and the rest behind it"),
    ("split the last axis", "split the packed projection along its last axis"),
    ("only reshaped to heads", "reshape q, k, and v to heads first: norms and scales come behind"),
    ("of fixed number and size", "export with a fixed number of heads and a fixed head size"),
    ("want (batch,", "reshape to [batch, length, heads, size] and swap the two in the middle"),
    ("want k and v alike", "project keys and values to as many heads, all of one size"),
    (" of v", "leave the values as they are projected"),
    (" of only one of q and k", "treat queries and keys alike, and scale the scores instead"),
    ("q and k turn", "turn queries and keys by the same cos and sin, in the same way"),
    ("nothing turns", "turn queries and keys by the same cos and sin, in the same way"),
    ("an angle a head", "turn all heads by the same angles"),
    ("bounds are not constants", "export with a fixed head size"),
    ("of axis", "slice the two halves of the last axis"),
    ("provably broadcast", "export with named dynamic axes that are equal where sizes are"),
    ("does not fit", "compute cos and sin for the batch and the length of what they turn"),
    ("do not agree", "use equal head sizes and lengths, named alike where they are dynamic"),
    ("[batch, channels", "put the channels second and what each of them holds behind"),
    ("channels do not divide", "use a number of groups that the channels divide by"),
    ("want [batch, groups", "split the channels alone into groups, which keeps the batch in front"),
    ("of the groups, want", "give the result of the norm the shape of its input"),
    (" times ", "scale and shift the channels behind the norm, not the groups inside it"),
    ("heads do not divide", "use a number of heads that the key/value heads divide"),
    ("the scale is", "scale the scores by a constant above zero"),
    ("NaN guard", "fill what the guard finds with 0"),
    ("before tanh", "divide and multiply by the same cap"),
    ("key/value cache", "keep the cache outside: concatenate keys and values before Attention"),
    ("is causal with", "pass the mask as an input where queries and keys differ in number"),
    ("has a window over", "pass the mask as an input where queries and keys differ in number"),
    ("its lengths are", "give one number of keys for each batch"),
    ("projected from one", "project q, k, and v from the same tensor"),
    ("linear layers of one", "project gate and up from the same tensor"),
    ("not one linear layer", "project gate and up from the same tensor, with weights of their own"),
    ("neither all fp16 nor all bf16", "build with --precision fp16 or bf16"),
    ("has a bias, or this one", "give all gated layers a bias, or none"),
    ("is not what gates", "gate with SiLU or GELU"),
    ("is broadcast over", "give each feature of gate one of up"),
    ("are one linear layer", "project gate and up apart, or leave them packed before the Split"),
    ("which may be lower", "mask with -inf, which a second mask cannot lower"),
    ("may have more than", "name the axes of queries and keys alike where they are equal"),
    ("its mask with", "compute the mask from positions and lengths alone"),
    ("the distance of a key", "mask by the distance alone, apart from masks by content"),
    ("ahead of a query", "hide the keys behind a query, or as many on both sides"),
    ("not four axes", "give q and k four axes: batch, heads, positions, size"),
    ("want (batch, seq, ", "split one projection into q, k, and v, in this order"),
    ("want sum", "add the parts of the ranks up; other reductions stay collectives"),
    ("changes its rows", "keep the last axis, and its rows in their order, up to the norm"),
    ("another type than the sum", "add in one type: cast behind the norm"),
    (
        "computes its bias with",
        "write the bias as a slope of each head times the distance of a key",
    ),
    ("auto_pad is", "state the pads, all 0"),
    ("known to be patches", "export with a fixed image size that the patches divide"),
    ("turns the patches by", "put the channels behind the patches and leave these in their order"),
    (
        "of patches side by side",
        "use a stride as large as the kernel, without pads, dilations, groups",
    ),
    ("than q, k, and v", "split one projection into q, k, and v, in this order"),
    ("do not follow each other", "split one projection into q, k, and v, in this order"),
    ("heads of several sizes", "use one head size for q, k, and v"),
    ("not the tensors expected", "read the same tensor in both places: a copy hides that"),
)


def of_reason(reason: str) -> str:
    """Return the advice for what a guard says; empty where there is none."""
    return next((advice for phrase, advice in _BY_REASON if phrase in reason), "")


def of_mismatch(found: str, reason: str) -> str:
    """Return the advice for a structure that differs.

    Args:
        found: The operator that stands in the way; empty where none does.
        reason: What the matcher says about it.
    """
    if reason.startswith("is computed"):
        return "export with constant folding, so that this value is an initializer"
    if reason.startswith(("is a graph input", "is a constant")):
        return "let the model compute it: part of the subgraph is missing from the export"
    if found == "Cast":
        return ONE_TYPE
    if found in ("Dropout", "Identity"):
        return "export in evaluation mode (model.eval())"
    if found in ("QuantizeLinear", "DequantizeLinear"):
        return "quantise behind the fused op, not inside of it"
    known = of_reason(reason)
    return known or (f"take the {found} out of it, or {SPELLING}" if found else SPELLING)
