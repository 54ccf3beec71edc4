"""OFA-KD's exit branches: from a stage of the student to the class scores, in training only.

Source:
    Hao et al., arXiv:2310.19444, section 3 and appendix. The paper fixes the input at 224 pixels;
    here the target grid is a setting, and any input size and grid will do.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

__all__ = ["MapBranch", "TokenBranch", "initialise"]


class MapBranch(nn.Module):
    """Branch for stages that are maps: separable convolutions, average pool, classifier.

    Stage k in 1 to 3 has 4 - k blocks, each halving the grid and doubling the channels, the last
    one leading to ``width``. Stage 4 has one 1x1 convolution with bias.

    Args:
        stage: Which stage of the student, 1 to 4.
        chan: Channels of that stage.
        width: Channels before the classifier: the larger of the two models' pooled widths.
        num_classes: Length of the scores.

    Attributes:
        description: What it is made of, in a few words.
    """

    def __init__(self, stage: int, chan: int, *, width: int, num_classes: int) -> None:
        super().__init__()
        if stage == 4:
            self.blocks = nn.Sequential(nn.Conv2d(chan, width, kernel_size=1))
        else:
            widths = [chan * 2**i for i in range(4 - stage)] + [width]
            self.blocks = nn.Sequential(
                *(_separable_block(a, b) for a, b in itertools.pairwise(widths))
            )
        count = 4 - stage
        what = f"{count} separable block{'s' * (count > 1)}" if count else "1x1 convolution"
        self.description = f"map branch: {what} to {width}, classifier"
        self.classifier = nn.Linear(width, num_classes)

    def forward(
        self, stage: Float[Tensor, "batch chan height width"], prefix: Tensor | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Score the classes from a stage map; prefix tokens are not read."""
        return self.classifier(self.blocks(stage).mean(dim=(2, 3)))


class TokenBranch(nn.Module):
    """Branch for stages of tokens: patch mergings, transformer blocks, classifier.

    The patch tokens of a grid g are merged ⌊log2(g / target_grid)⌋ times; prefix tokens pass by,
    projected where the blocks have another width. Then come max(4 - k, 1) pre-norm blocks of 4
    heads, and the class token, or the mean of the patch tokens where there is none (registers are
    not one), goes to the classifier.

    Args:
        stage: Which stage k of the student, 1 to 4.
        shape: (chan, height, width) of that stage.
        width: Width of the blocks: the student's pooled width.
        num_classes: Length of the scores.
        target_grid: Grid to merge down to; 7 in the paper, at 224 pixels.
        num_prefix_tokens: Tokens that come beside the map.
        class_token: Whether the first of them stands for the whole image.

    Attributes:
        description: What it is made of, in a few words.
    """

    def __init__(
        self,
        stage: int,
        shape: Sequence[int],
        *,
        width: int,
        num_classes: int,
        target_grid: int,
        num_prefix_tokens: int = 0,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        self.reads_class_token = class_token and num_prefix_tokens > 0
        chan, height, width_px = shape
        count = max(int(math.log2(min(height, width_px) / target_grid)), 0)
        merges = [
            _PatchMerging(chan if i == 0 else width, width, activate=count == 1 or i < count - 1)
            for i in range(count)
        ]
        if not merges and chan != width:
            merges = [_ChannelsLastLinear(chan, width)]
        self.merges = nn.Sequential(*merges)
        other_width = num_prefix_tokens and chan != width
        self.prefix = nn.Linear(chan, width) if other_width else nn.Identity()
        heads = math.gcd(4, width)
        self.blocks = nn.Sequential(
            *(Block(width, heads, mlp_ratio=4.0, qkv_bias=False) for _ in range(max(4 - stage, 1)))
        )
        merged = f"{count} merging{'s' * (count > 1)} and " if count else ""
        blocks = f"{len(self.blocks)} block{'s' * (len(self.blocks) > 1)}"
        self.description = f"token branch: {merged}{blocks} of {width}, classifier"
        self.classifier = nn.Linear(width, num_classes)

    def forward(
        self,
        stage: Float[Tensor, "batch chan height width_px"],
        prefix: Float[Tensor, "batch tokens chan"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Score the classes from a stage map and its prefix tokens."""
        tokens = self.merges(stage.permute(0, 2, 3, 1)).flatten(1, 2)
        count = 0 if prefix is None else prefix.shape[1]
        if prefix is not None:
            tokens = torch.cat([self.prefix(prefix), tokens], dim=1)
        tokens = self.blocks(tokens)
        image = tokens[:, 0] if self.reads_class_token else tokens[:, count:].mean(dim=1)
        return self.classifier(image)


class _PatchMerging(nn.Module):
    """Concatenate 2x2 neighbours, normalise, project; channels last."""

    def __init__(self, chan: int, width: int, *, activate: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * chan)
        self.project = nn.Linear(4 * chan, width, bias=False)
        self.activation = nn.GELU() if activate else nn.Identity()

    def forward(self, x: Float[Tensor, "batch h w chan"]) -> Float[Tensor, "batch h2 w2 width"]:
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))  # an odd grid gets a row of zeros
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (batch, h/2, w/2, 4 chan)
        return self.activation(self.project(self.norm(x)))


class _ChannelsLastLinear(nn.Linear):
    """A grid at its target already, of another width than the blocks."""


def _separable_block(chan: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(chan, chan, 3, stride=2, padding=1, groups=chan, bias=False),
        nn.Conv2d(chan, chan, 1, bias=False),
        nn.BatchNorm2d(chan),
        nn.ReLU(inplace=True),
        nn.Conv2d(chan, chan, 3, padding=1, groups=chan, bias=False),
        nn.Conv2d(chan, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def initialise(module: nn.Module) -> None:
    """Set new weights: convolutions Kaiming fan-out, norms 1 and 0, linear truncated normal 0.02.

    Args:
        module: Everything in it is set.
    """
    for part in module.modules():
        match part:
            case nn.Conv2d():
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            case nn.Linear():
                trunc_normal_(part.weight, std=0.02)
            case nn.BatchNorm2d() | nn.LayerNorm():
                nn.init.ones_(part.weight)
            case _:
                continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
