"""What people would write or use instead, from the published definitions alone.

plain         three n x n Gram matrices and their eigenvalues, in JAX and in PyTorch
compiled      that under `torch.compile`
Renyi         the entropy of order 1.01 instead of the limit, as toolkits of matrix-based Renyi
              entropy do (representation-itl): traces of matrix powers by eigenvalues
dual          eigenvalues of the d x d covariance, as Vendi-Score does: one entropy, no joint term
"""

import jax.numpy as jnp


def mir_plus_hdr(first, second, joint, minimum, maximum):
    """MIR + HDR out of three entropies: one number with both."""
    smaller, larger = minimum(first, second), maximum(first, second)
    return (first + second - joint) / smaller + (larger - smaller) / larger


def plain_jax(features, head, labels):
    """MIR + HDR by the definition."""

    def gram(z):
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        return jnp.matmul(z, z.T, precision="highest")

    def entropy(kernel):
        values = jnp.linalg.eigvalsh(kernel / kernel.shape[0])
        positive = values > 0
        logs = jnp.log(jnp.where(positive, values, 1.0))
        return -jnp.sum(jnp.where(positive, values * logs, 0.0))

    features, head = features.astype(jnp.float32), head.astype(jnp.float32)
    k1, k2 = gram(features), gram(head[labels])
    return mir_plus_hdr(entropy(k1), entropy(k2), entropy(k1 * k2), jnp.minimum, jnp.maximum)


def unit(rows):
    """Rows of length 1, in PyTorch."""
    import torch

    return rows / torch.linalg.norm(rows, dim=1, keepdim=True)


def torch_entropy(kernel):
    """Of the spectrum of a kernel with ones on its diagonal."""
    import torch

    values = torch.linalg.eigvalsh(kernel / kernel.shape[0])
    return torch.special.entr(values.clamp(min=1e-12)).sum()


def torch_entropies(features, head, labels, entropy=torch_entropy):
    """The entropies of features, of their rows of the head and of both, by the definition."""
    features, rows = unit(features.float()), unit(head.float())[labels]
    k1, k2 = features @ features.T, rows @ rows.T
    return entropy(k1), entropy(k2), entropy(k1 * k2)


def plain_torch(features, head, labels, entropy=torch_entropy):
    """MIR + HDR by the definition, in PyTorch."""
    import torch

    entropies = torch_entropies(features, head, labels, entropy)
    return mir_plus_hdr(*entropies, torch.minimum, torch.maximum)


def renyi_torch(features, head, labels):
    """The same with the Renyi entropy of order 1.01, which tends to it."""

    def entropy(kernel):
        values = (kernel / kernel.shape[0]).double()
        import torch

        values = torch.linalg.eigvalsh(values).clamp(min=0)
        return (values**1.01).sum().log() / (1 - 1.01)

    return plain_torch(features, head, labels, entropy)


def dual_torch(features):
    """`H(G(Z))` by the d x d side."""
    rows = unit(features.float())
    return torch_entropy(rows.T @ rows * (rows.shape[1] / rows.shape[0]))
