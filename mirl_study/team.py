"""Who trains a network: one process alone, or one of several with equal shares of every batch."""

import torch
from torch import nn


class Team:
    """One process alone; ``distributed.Ranks`` is one of several.

    Attributes:
        rank: of this process; the first one, 0, writes, tells and looks at the validation images for all.
        size: how many there are.
    """

    rank, size = 0, 1

    def join(self, network: nn.Module) -> nn.Module:
        """Returns the network as it is called in training, so that all processes get the mean of their gradients."""
        return network

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """Returns this process's part of a batch."""
        return batch

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the mean of a tensor over all processes."""
        return value

    def gather(self, parts: torch.Tensor) -> torch.Tensor:
        """Returns the parts of all processes, in the order of the batch."""
        return parts
