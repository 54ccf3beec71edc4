"""Any classifier as four stages and a head: one forward pass that keeps what methods compare."""

import inspect
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import PatchEmbed
from torch import Tensor, nn

from anykd.errors import ModelError
from anykd.types import Features

from .probe import evaluating, probe_images
from .structure import BranchDesign, Kind, branch_design_of, kind_of, pick_taps
from .tail import Tail, find_tail

__all__ = ["StagedModel"]

_NO_NORM = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class StagedModel(nn.Module):
    """A timm classifier whose forward pass also yields four stage maps.

    Hierarchical models (ResNet, ConvNeXt, Swin) give their last four levels, columnar ones (ViT,
    Mixer) the blocks 2, 4, L-2 and L of their depth L, tokens folded to a map. Everything is found
    by probing one image, never by a table of names.

    Args:
        module: A timm classifier. It is used, not copied.
        image_size: Pixels, one number or (height, width), that it sees; other images are resized.
            None takes the model's own.
        branch_design: Which of OFA's branch designs suits its stages; None derives it.

    Attributes:
        model: The classifier.
        image_size: (height, width) in pixels.
        num_classes: Length of the logits; 0 for a model without a classifier, whose logits are its
            pooled vector.
        width: Length of the pooled vector.
        taps: Index of each stage among the model's intermediates.
        shapes: (chan, height, width) of each stage for images of ``image_size``.
        num_prefix_tokens: Class, distillation and register tokens beside each map.
        columnar: True where all stages have one resolution.
        kind: ``conv``, ``attention``, ``mlp`` or ``hybrid``: what mixes positions in its blocks.
        branch_design: ``map`` or ``token``.

    Raises:
        ModelError: If the module is no timm classifier, has fewer than four levels of features, or
            cannot take images of ``image_size``.
    """

    # timm attaches what is used here at run time; no other file relies on it.
    model: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        image_size: int | tuple[int, int] | None = None,
        branch_design: BranchDesign | None = None,
    ) -> None:
        super().__init__()
        _require_timm(module)
        self.model = module
        config: dict[str, Any] = getattr(module, "pretrained_cfg", None) or {}
        self.image_size = _both(image_size or tuple(config.get("input_size", (3, 224, 224)))[-2:])
        mean, std = (config.get("mean", _NO_NORM[0]), config.get("std", _NO_NORM[1]))
        # Not saved: they belong to the weights' config, and a student's file holds only weights.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.interpolation: str = config.get("interpolation", "bicubic")
        self.num_prefix_tokens = int(getattr(module, "num_prefix_tokens", 0) or 0)
        signature = inspect.signature(self.model.forward_intermediates).parameters
        keeps_prefix = self.num_prefix_tokens and "return_prefix_tokens" in signature
        self._options = {"return_prefix_tokens": True} if keeps_prefix else {}
        self._tail: Tail | None = None
        self._probe()
        self.branch_design: BranchDesign = branch_design or branch_design_of(
            self.model, self.stage_modules, columnar=self.columnar
        )

    def _probe(self) -> None:
        """Learn taps, shapes, widths and how the head splits from one random image."""
        _require_whole_patches(self)
        self.taps: tuple[int, ...] = ()
        self._final_is_stage_4 = False
        self._split_head = True
        with torch.no_grad(), evaluating(self.model):
            images = probe_images(self.image_size, like=self.mean)
            final, levels = self.intermediates(images, indices=None)
            maps = [stage for stage, _ in levels]
            if len(maps) < 4:
                raise ModelError(
                    f"{self.name} has {len(maps)} levels of features, 4 are needed",
                    hint="choose a model with four or more levels; `anykd models` lists names",
                )
            sizes = [tuple(m.shape[-2:]) for m in maps]
            self.columnar = len(set(sizes)) == 1
            self.taps = pick_taps(len(maps), columnar=self.columnar)
            # MobileNetV2 and EfficientNet widen the last level once more before pooling; OFA's
            # fourth stage is that wider map.
            last = maps[self.taps[-1]]
            self._final_is_stage_4 = (
                final.ndim == 4
                and final.shape[-2:] == last.shape[-2:]
                and final.shape[1] != last.shape[1]
            )
            pooled = self.model.forward_head(final, pre_logits=True)
            logits = self.model.forward_head(final)
            classifier = self.model.get_classifier()
            self._split_head = isinstance(classifier, nn.Module) and torch.equal(
                classifier(pooled), logits
            )
            features = self._features(final, [levels[i] for i in self.taps])
        self.shapes = tuple(_shape(stage) for stage in features.stages)
        self.width: int = features.pooled.shape[1]
        headless = isinstance(classifier, nn.Identity)
        self.num_classes: int = 0 if headless else features.logits.shape[1]
        self.kind: Kind = kind_of(self.model, self.stage_modules, columnar=self.columnar)

    @property
    def name(self) -> str:
        """Architecture as timm calls it."""
        config = getattr(self.model, "pretrained_cfg", None) or {}
        return config.get("architecture") or type(self.model).__name__

    @property
    def stage_modules(self) -> tuple[str, ...]:
        """Path of the module that ends each stage, as timm's feature info gives it."""
        info = self.model.feature_info
        dicts = info.get_dicts() if hasattr(info, "get_dicts") else info
        return tuple(dicts[i]["module"] for i in self.taps)

    def prepare(
        self, images: Float[Tensor, "batch 3 height width_px"]
    ) -> Float[Tensor, "batch 3 own_height own_width"]:
        """Resize images in [0, 1] to the model's size and normalise them its way."""
        if tuple(images.shape[-2:]) != self.image_size:
            mode = "bicubic" if self.interpolation == "bicubic" else "bilinear"
            images = F.interpolate(
                images, size=self.image_size, mode=mode, antialias=True, align_corners=False
            )
        return (images - self.mean) / self.std

    def forward(self, images: Float[Tensor, "batch 3 height width_px"]) -> Features:
        """Run the model once and keep its stages."""
        final, levels = self.intermediates(images, indices=list(self.taps))
        return self._features(final, levels)

    def intermediates(
        self, images: Float[Tensor, "batch 3 height width_px"], indices: list[int] | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        """Run the model to its final feature, before pooling, and keep levels on the way.

        Args:
            images: RGB in [0, 1].
            indices: The levels to keep; None keeps all.

        Returns:
            The final feature in the model's own layout, and each level as (map, prefix tokens).
        """
        final, levels = self.model.forward_intermediates(
            self.prepare(images), indices=indices, **self._options
        )
        return final, [level if isinstance(level, tuple) else (level, None) for level in levels]

    def _features(
        self, final: Tensor, levels: list[tuple[Tensor, Tensor | None]], *, tail: bool = False
    ) -> Features:
        stages = [stage for stage, _ in levels]
        if self._final_is_stage_4 and not tail:
            stages[-1] = final
        pooled = self.model.forward_head(final, pre_logits=True)
        logits = (
            self.model.get_classifier()(pooled)
            if self._split_head
            else self.model.forward_head(final)
        )
        return Features(tuple(stages), tuple(prefix for _, prefix in levels), pooled, logits)

    @property
    def has_tail(self) -> bool:
        """Whether stage 4 and the head can be run from a stage-3 map."""
        try:
            self.require_tail()
        except ModelError:
            return False
        return True

    def require_tail(self) -> Tail:
        """Find the tail, or refuse a model that has none."""
        if self._tail is None:
            self._tail = find_tail(self)
        return self._tail

    def tail(
        self,
        stage3_map: Float[Tensor, "batch chan height width_px"],
        prefix: Float[Tensor, "batch tokens chan"] | None = None,
    ) -> Features:
        """Run stage 4, the final norm and the head from a stage-3 map.

        Args:
            stage3_map: Of the channels of ``shapes[2]``, and of its grid where the model's stage 4
                depends on one.
            prefix: The prefix tokens of stage 3, for a model that has some.

        Returns:
            Features whose ``stages`` and ``prefixes`` are empty: pooled and logits are what the
            model itself computes from that map.

        Raises:
            ModelError: If this model's stage 4 cannot be run by itself, or prefix tokens are
                missing
                or too many, or the map has other channels.
        """
        tail = self.require_tail()
        given = 0 if prefix is None else prefix.shape[1]
        if given != self.num_prefix_tokens:
            raise ModelError(
                f"the tail of {self.name} takes {self.num_prefix_tokens} prefix tokens, got {given}"
            )
        if stage3_map.shape[1] != self.shapes[2][0]:
            raise ModelError(
                f"the tail of {self.name} takes maps of {self.shapes[2][0]} channels, "
                f"got {stage3_map.shape[1]}"
            )
        return self._features(tail.run(stage3_map, prefix), [], tail=True)

    @property
    def tail_modules(self) -> tuple[nn.Module, ...]:
        """The modules that the tail runs before the head."""
        return self.require_tail().modules

    def prefix_tokens(self) -> Float[Tensor, "1 tokens chan"] | None:
        """The model's own learnt prefix tokens with their positions, or None where it has none."""
        names = ("cls_token", "dist_token", "reg_token")
        tokens = [getattr(self.model, n) for n in names if getattr(self.model, n, None) is not None]
        if not tokens or sum(t.shape[1] for t in tokens) != self.num_prefix_tokens:
            return None
        prefix = torch.cat([t.detach() for t in tokens], dim=1)
        position = getattr(self.model, "pos_embed", None)
        _, height, width = self.shapes[2]
        if (
            isinstance(position, Tensor)
            and position.shape[1] == self.num_prefix_tokens + height * width
        ):
            prefix = prefix + position.detach()[:, : self.num_prefix_tokens]
        return prefix

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the model keeps from weight decay."""
        names = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        return {f"model.{name}" for name in names}


def _shape(stage: Tensor) -> tuple[int, int, int]:
    _, chan, height, width = stage.shape
    return chan, height, width


def _both(size: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _require_whole_patches(staged: StagedModel) -> None:
    """Refuse a size whose last pixels a patch embedding would drop in silence."""
    for part in staged.model.modules():
        if isinstance(part, PatchEmbed) and not part.dynamic_img_pad:
            patch = tuple(int(side) for side in part.patch_size)
            if any(size % p for size, p in zip(staged.image_size, patch, strict=True)):
                raise ModelError(
                    f"{staged.name} cuts patches of {patch[0]} x {patch[1]} px, which do not fill "
                    f"images of {staged.image_size[0]} x {staged.image_size[1]} px",
                    hint="choose an image_size that patch_size divides, or another patch_size",
                )


def _require_timm(module: nn.Module) -> None:
    needed: tuple[Literal["forward_intermediates", "forward_head", "feature_info"], ...]
    needed = ("forward_intermediates", "forward_head", "feature_info")
    missing = [name for name in needed if not hasattr(module, name)]
    if missing:
        raise ModelError(
            f"{type(module).__name__} is no timm classifier: it lacks {', '.join(missing)}",
            hint="models come from timm.create_model, or anykd.models.create_staged by name",
        )
