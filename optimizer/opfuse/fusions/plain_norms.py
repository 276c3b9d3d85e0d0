"""Norms without weights: what stands before a modulation, norm(x) * (1 + scale) + shift.

adaLN (Peebles and Xie 2023) and q/k norms without affine parameters write them; the weights of the
fused norm are ones.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions import layer_norm, rms_norm
from opfuse.fusions.guards import equals, floating, known_casts, own_type, reduces_last, static
from opfuse.fusions.unit import epsilon_of
from opfuse.graph.edit import producer
from opfuse.graph.fusion import Decline, Found, Fusion, NewNode, Replacement
from opfuse.graph.pattern import any_of, op

_LONGEST = 1 << 14  # features of a token; more are the pixels of an image

centred = layer_norm.over_root.whole
direct = rms_norm.over_root.whole


def _layer_norm(found: Found) -> Replacement:
    for node in (layer_norm.mean, layer_norm.spread):
        reduces_last(found.work, found.node(node), len(found.shape("x")))
    gamma = _ones(found)
    attrs = {"axis": -1, "epsilon": epsilon_of(found, layer_norm.over_root)}
    result = found.anchor.outputs[0]
    return Replacement([NewNode("LayerNormalization", (found["x"], gamma), (result,), attrs, "")])


def _rms_norm(found: Found) -> Replacement:
    reduces_last(found.work, found.node(rms_norm.mean), len(found.shape("x")))
    gamma = _ones(found)
    attrs = {"epsilon": epsilon_of(found, rms_norm.over_root)}
    result = found.anchor.outputs[0]
    return Replacement([NewNode("RmsNorm", (found["x"], gamma), (result,), attrs)])


def _ones(found: Found) -> gs.Tensor:
    """Return the weights, after the guards that both norms share."""
    dtype = floating(found, "x")
    own_type(found, dtype)
    known_casts(found)
    equals(found, "two", 2.0)
    _is_no_group(found)
    length = static(found.shape("x")[-1], "the length that is normalised", found.anchor)
    if length > _LONGEST:
        raise Decline(f"{length} ones are no weights of features")
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    return found.work.constant(found["x"], "ones", np.ones(length, kind))


def _is_no_group(found: Found) -> None:
    """Leave a GroupNorm that is written out alone: groups are split before and joined behind.

    Those of Mamba 2 are of the features of one token, and not centred.
    """
    before = producer(found["x"])
    is_centred = before is not None and before.op == "Sub"
    if before is not None and is_centred:  # the centring of what was split
        before = producer(before.inputs[0])
    readers = found.anchor.outputs[0].outputs
    if before is None or before.op != "Reshape" or any(n.op != "Reshape" for n in readers):
        return
    whole = found.work.shape(before.inputs[0])
    of_token = whole is not None and whole[:-1] == found.shape("x")[:-2]
    if is_centred or found.has(layer_norm.spread) or not of_token:
        raise Decline("normalises groups")


# Both are tried where the norms with weights did not take what they are a part of, and tell of it.
# Behind a Cast to fp16 there is no LayerNorm with weights to tell: one that has its Sub and both
# means, but not the square between them, is told of here.
LAYER_NORM = Fusion("LayerNormalization", ("Div", "Mul"), centred, _layer_norm, near=6, key="Sub")
RMS_NORM = Fusion(
    "RmsNorm", ("Cast", "Div", "Mul"), any_of(op.Cast(direct), direct), _rms_norm, near=9
)
