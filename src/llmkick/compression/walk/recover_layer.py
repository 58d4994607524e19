"""How a recovery changes one compressed layer, given the second moments of its inputs."""

import time

import torch
from torch import Tensor

from llmkick.compression.kernels.eora import eora
from llmkick.compression.kernels.grid import decode
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.kernels.layer import LayerRecovery, WeightResult
from llmkick.compression.kernels.reconstruct import refit_kept, refit_scales
from llmkick.compression.recoveries import EoRA, Recovery
from llmkick.models.low_rank import adapter_of, merged


def recover_layer(recovery: Recovery, dense: Tensor, result: WeightResult, inputs: InputStatistics) -> WeightResult:
    """The recovered weight (out, in) of a layer from its dense weight and the result of its compression."""
    started = time.perf_counter()
    hessian = inputs.hessian()
    if isinstance(recovery, EoRA):
        recovered = _with_adapter(recovery, dense, result, hessian)
    elif result.grid is not None and result.codes is not None:
        grid = refit_scales(dense, result.codes, result.grid, hessian, dense.dtype)
        recovered = result._replace(weight=decode(result.codes, grid).to(dense.dtype), grid=grid)
    else:
        recovered = result._replace(weight=refit_kept(dense, result.weight, hessian))
    changes = (dense.float(), result.weight.float() - dense.float(), recovered.weight.float() - dense.float())
    squares = torch.stack([((change @ hessian) * change).sum().clamp(min=0) for change in changes])
    size, before, after = squares.tolist()  # only when a GPU has been waited for is it known how long the work took
    kept = recovered.recovery or LayerRecovery(None, None, 0.0)
    return recovered._replace(
        recovery=kept._replace(
            error_before=None if size == 0 else (before / size) ** 0.5,
            error_after=None if size == 0 else (after / size) ** 0.5,
            seconds=time.perf_counter() - started,
        )
    )


def _with_adapter(recovery: EoRA, dense: Tensor, result: WeightResult, hessian: Tensor) -> WeightResult:
    """The weight with a compensation, which stays beside it: it would fill zeros and leave the grid."""
    b, a = eora(dense.float() - result.weight.float(), hessian, recovery.rank)
    adapter = adapter_of(b, a, dense.dtype)
    weight = merged(result.weight, adapter)
    return result._replace(weight=weight, recovery=LayerRecovery(None, None, 0.0, adapter, result.weight))
