"""stand_in: a module's own forward with other parameters, whatever its class computes."""

import copy
from functools import partial

from torch import Tensor, nn

from lokr_core.layers.layer import Forward


def stand_in(
    module: nn.Module, parameters: dict[str, Tensor | None], **attributes: object
) -> Forward:
    """Return the forward of a module's class over other parameters.

    Args:
        module: The module; it shares all else, and stays what it is.
        parameters: By name; those that are not named stay the module's.
        attributes: Plain attributes that differ.
    """
    twin = copy.copy(module)
    twin.__dict__.update(attributes, _parameters={**module._parameters, **parameters})
    twin.__dict__.pop("forward", None)  # which is ours
    return partial(type(module).forward, twin)
