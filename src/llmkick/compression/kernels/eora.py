"""EoRA: the low-rank matrix that best restores the output of a compressed layer (arXiv 2410.21271)."""

import torch
from torch import Tensor


def eora(change: Tensor, hessian: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B (out, rank) and A (rank, in), float32, that minimise ‖(ΔW − BA) X‖_F.

    change ΔW: (out, in), dense weight − compressed weight. hessian: (in, in), any multiple of X Xᵀ.
    With H = QΛQᵀ the paper takes the best rank-r matrix of ΔW QΛ^½, by an SVD UΣVᵀ, and projects it back with Λ^-½Qᵀ.
    Where H is regular that is BA = U_r U_rᵀ ΔW, which needs no inverse: the columns of U_r are the directions in which
    the outputs change most. So it is computed, and holds where H has eigenvalues of 0 too: there the objective does not
    depend on how ΔW acts on inputs that never occur, and the projection on U_r restores that part as well.
    """
    double = change.double()
    directions = _output_directions(double, hessian.double())[:, :rank]
    return directions.float(), (directions.T @ double).float()


def _output_directions(change: Tensor, hessian: Tensor) -> Tensor:
    """Left singular vectors of ΔW·H^½ as columns, the largest first: (out, min(out, in)); 0 for vanishing ones.

    By an eigendecomposition of the smaller of its two Gram matrices.
    """
    if change.shape[0] <= change.shape[1]:
        gram = change @ hessian @ change.T
        return _descending(gram)[1]
    values, vectors = torch.linalg.eigh(hessian)
    # Negative eigenvalues are rounding errors of zeros.
    weighted = change @ (vectors * values.clamp(min=0).sqrt())
    squares, right = _descending(weighted.T @ weighted)
    # What is below the rounding error of the Gram matrix is a direction of noise.
    noise = squares.max().clamp(min=0) * torch.finfo(squares.dtype).eps * len(squares)
    sizes = squares.clamp(min=0).rsqrt().masked_fill(squares <= noise, 0)
    directions: Tensor = (weighted @ right) * sizes
    return directions


def _descending(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0), vectors.flip(1)
