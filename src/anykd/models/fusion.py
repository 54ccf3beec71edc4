"""FBT's L2G: from the stage-3 map of one model to what the tail of another expects.

Source:
    Li et al., "Fuse Before Transfer: Knowledge Fusion for Heterogeneous Distillation", ICCV 2025,
    arXiv:2410.12342, section 3.
"""

import torch
from jaxtyping import Float
from timm.layers import trunc_normal_
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from .align import MapAligner
from .staged import StagedModel

__all__ = ["L2G"]

_WINDOW = 7
_HEAD_WIDTH = 32


class L2G(nn.Module):
    """Local to global: a patch embedding, a norm and one Swin block.

    Where the tail has prefix tokens, L2G also learns those (from the tail model's own class token
    on) and a position embedding.

    Args:
        front_shape: (chan, height, width) of the front model's stage 3.
        tail: The model whose tail comes behind.
        attention: Whether the Swin block is there; without it L2G is a patch embedding and a norm.
    """

    def __init__(
        self, front_shape: tuple[int, int, int], tail: StagedModel, *, attention: bool = True
    ) -> None:
        super().__init__()
        chan, height, width = tail.shapes[2]
        self.embed = MapAligner(front_shape, (chan, height, width))
        self.norm = nn.LayerNorm(chan)
        self.block = _swin_block(chan, height, width) if attention else nn.Identity()
        self.prefix = self.position = None
        if attention and tail.num_prefix_tokens:
            tokens = tail.prefix_tokens()
            if tokens is None:
                tokens = trunc_normal_(torch.empty(1, tail.num_prefix_tokens, chan), std=0.02)
            self.prefix = nn.Parameter(tokens.clone())
            self.position = nn.Parameter(torch.empty(1, height, width, chan))
            trunc_normal_(self.position, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Tokens, positions and the relative position table."""
        tables = {name for name, _ in self.named_parameters() if "relative_position_bias" in name}
        return tables | {"prefix", "position"}

    def forward(
        self, stage: Float[Tensor, "batch chan height width"]
    ) -> tuple[
        Float[Tensor, "batch new_chan new_height new_width"],
        Float[Tensor, "batch tokens new_chan"] | None,
    ]:
        """Turn a front model's stage-3 map into the map and prefix tokens that a tail takes."""
        x = self.norm(self.embed(stage).permute(0, 2, 3, 1))
        if self.position is not None:
            x = x + self.position
        x = self.block(x).permute(0, 3, 1, 2)
        return x, None if self.prefix is None else self.prefix.expand(len(x), -1, -1)


def _swin_block(chan: int, height: int, width: int) -> SwinTransformerBlock:
    return SwinTransformerBlock(
        chan,
        input_resolution=(height, width),
        num_heads=max(chan // _HEAD_WIDTH, 1),
        head_dim=_HEAD_WIDTH,
        window_size=_WINDOW,
        mlp_ratio=4.0,
    )
