"""Speed: how fast each path runs here, against this device's own peak and against torch.

Floating-point operations are counted by the `exact` convention of `lmscale.flops`: every operation
of forward and backward pass, an attention score under the causal mask counted in full.
"""

from lmscale.bench.paths import PATHS, Row, measure

__all__ = ["PATHS", "Row", "measure"]
