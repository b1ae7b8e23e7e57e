"""When a module's weight may be read in place of calling the module."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks


def is_plain(module: Any, *kinds: type[nn.Module]) -> bool:
    """Whether a call of `module` does what one of `kinds` does with a weight of its own, and nothing else.

    Then a product with its weight goes unnoticed. Adapters, pruning, weight norms, quantisation, offloading, sharding,
    tracing and the counting of operations each add a hook, or put another class, `forward` or kind of weight.
    """
    return (
        type(module) in kinds
        and not (module._forward_pre_hooks or module._forward_hooks)
        and not (module._backward_pre_hooks or module._backward_hooks)
        and not (hooks._global_forward_pre_hooks or hooks._global_forward_hooks)
        and not (hooks._global_backward_pre_hooks or hooks._global_backward_hooks)
        and "forward" not in module.__dict__
        and module._compiled_call_impl is None
        and type(module.weight) is nn.Parameter
    )


def is_dense(x: object) -> bool:
    """Whether `x` is a tensor as PyTorch makes it, and no other package's, sharded or quantised."""
    return type(x) in (Tensor, nn.Parameter)
