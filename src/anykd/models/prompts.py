"""PAT's adaptive feedback prompts: small blocks that bend the teacher's features.

Source:
    Lin et al., "Perspective-Aware Teaching: Adapting Knowledge for Heterogeneous Distillation",
    ICCV 2025, arXiv:2501.08885.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .branches import initialise

__all__ = ["FeedbackPrompt"]


class FeedbackPrompt(nn.Module):
    """What to add to a teacher's map, given that map and how the student misses it.

    A fusion block joins map and feedback: 1x1 convolution, group norm, GELU. A prompt block turns
    that into a residual: depthwise 3x3 convolution, GELU, 1x1 convolution. The last one starts at
    zero, so that training starts from the teacher as it is.

    Args:
        chan: Channels of the map.
        width: Channels between the blocks.
        feedback: Whether there is feedback, of the map's shape.
    """

    def __init__(self, chan: int, width: int, *, feedback: bool) -> None:
        super().__init__()
        self.fuse = nn.Sequential(
            nn.Conv2d(2 * chan if feedback else chan, width, kernel_size=1),
            nn.GroupNorm(1, width),
            nn.GELU(),
        )
        last = nn.Conv2d(width, chan, kernel_size=1)
        self.prompt = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width), nn.GELU(), last
        )
        initialise(self)
        nn.init.zeros_(last.weight)

    def forward(
        self,
        stage: Float[Tensor, "batch chan height px"],
        feedback: Float[Tensor, "batch chan height px"] | None,
    ) -> Float[Tensor, "batch chan height px"]:
        """Adapt a map."""
        seen = stage if feedback is None else torch.cat([stage, feedback], dim=1)
        return stage + self.prompt(self.fuse(seen))
