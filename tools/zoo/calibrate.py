"""Batch-norm statistics that survive having the weights redrawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SHIFT_DEVIATION = 0.1


def calibrate_batch_norms(module: nn.Module, *inputs: Tensor) -> nn.Module:
    """Set every batch norm so that its output has unit power on `inputs`, one scale for all channels of a layer.

    Without it a random network in evaluation mode dies out or explodes with depth. Per-channel means and variances
    would fit these very weights only; the power of a whole layer stays the same when its weights are drawn again from
    their mean and deviation, which is what the zoo does. After layer-sequential unit-variance initialisation (Mishkin
    and Matas, arXiv:1511.06422), with power in place of variance. Shifts become small random numbers.

    Returns: the module, in evaluation mode.
    """
    module.eval()
    hooks = []
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.bias, std=_SHIFT_DEVIATION)
            hooks.append(norm.register_forward_pre_hook(_match_power))
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return module


def _match_power(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    norm.running_mean.zero_()
    norm.running_var.fill_(inputs[0].square().mean())
