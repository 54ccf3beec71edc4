"""Batch norms that see images twice in a step."""

from torch import nn

__all__ = ["batch_statistics_kept"]


class batch_statistics_kept:  # noqa: N801 - used as a function
    """For a while, batch norms normalise by the batch but leave their running statistics alone.

    The student's tail sees fused features in training and never at inference: they must not enter
    the statistics that inference uses.

    Args:
        modules: Where to look for batch norms.
    """

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        parts = [part for module in modules for part in module.modules()]
        norms = [part for part in parts if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        self.norms = [norm for norm in norms if norm.track_running_stats]

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.track_running_stats = False

    def __exit__(self, *error: object) -> None:
        for norm in self.norms:
            norm.track_running_stats = True
