"""Any classifier as four stages and a head: one forward pass that keeps what methods compare."""

import inspect
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from torch import Tensor, nn

from anykd.errors import ModelError
from anykd.types import Features

from .batchnorm import batch_statistics_kept
from .checkpoints import LoadedWeights
from .classifier import LastLayer, find_last_layer
from .layouts import as_map
from .origin import ModelOrigin
from .probe import AttentionSeen, evaluating, first_module, probe_images
from .protocol import Backbone
from .structure import BranchDesign, Kind, branch_design_of, kind_of, pick_taps
from .tail import Tail, find_tail
from .views import View, Views

__all__ = ["StagedModel"]

Level = tuple[Tensor, Tensor | None]

_NO_NORM = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class StagedModel(nn.Module):
    """A classifier whose forward pass also yields four stage maps.

    Hierarchical models (ResNet, ConvNeXt, Swin) give their last four levels, columnar ones (ViT,
    Mixer) the blocks 2, 4, L-2 and L of their depth L, tokens folded to a map. A model of three
    levels (LeViT, PiT) gives what its stem makes of the image as stage 1; the stem is run twice for
    that. Everything is found by probing one image, never by a table of names.

    Args:
        module: A timm classifier, or a module that follows `Backbone`. It is used, not copied.
        image_size: Pixels, one number or (height, width), that it sees; other images are resized.
            None takes the model's own.
        mean: Of R, G and B in [0, 1]; None takes the model's own, or 0 where it has none.
        std: Likewise, or 1.
        interpolation: nearest, bilinear or bicubic; None takes the model's own, or bicubic.
        branch_design: Which of OFA's branch designs suits its stages; None derives it.

    Attributes:
        model: The classifier.
        image_size: (height, width) in pixels.
        view: Size, interpolation, mean and deviation of the images that it sees.
        crop_pct: Share of the resized short side that its evaluation keeps, in (0, 1].
        class_names: What each logit stands for; empty where the model does not say.
        license: Of its weights, as their config names it, or None.
        num_classes: Length of the logits; 0 for a model without a classifier, whose logits are its
            pooled vector.
        width: Length of the pooled vector.
        taps: Index of each stage among the model's levels.
        shapes: (chan, height, width) of each stage for images of ``image_size``.
        num_prefix_tokens: Class, distillation and register tokens beside each map.
        has_class_token: Whether the first of them stands for the whole image.
        columnar: True where all stages have one resolution.
        origin: The name and options that make it again; None where it was wrapped by hand.
        loaded: Where its weights come from, and what of them was left out; None where they are
            random or its maker's.
        kind: ``conv``, ``attention``, ``mlp`` or ``hybrid``: what mixes positions in its blocks.
        branch_design: ``map`` or ``token``.

    Raises:
        ModelError: If the module is neither, has fewer than three levels of features, or cannot
            take images of ``image_size``.
    """

    # timm attaches what is used here at run time; no other file relies on it.
    model: Any
    mean: Tensor
    std: Tensor
    # Filled in by `create_staged`.
    origin: ModelOrigin | None = None
    loaded: LoadedWeights | None = None

    def __init__(
        self,
        module: nn.Module,
        *,
        image_size: int | tuple[int, int] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
        branch_design: BranchDesign | None = None,
    ) -> None:
        super().__init__()
        self.is_timm = _is_timm(module)
        self.model = module
        config: dict[str, Any] = getattr(module, "pretrained_cfg", None) or {}
        self.image_size = _both(image_size or tuple(config.get("input_size", (3, 224, 224)))[-2:])
        self.view = View(
            self.image_size,
            interpolation or config.get("interpolation") or "bicubic",
            tuple(float(m) for m in mean or config.get("mean") or _NO_NORM[0]),
            tuple(float(s) for s in std or config.get("std") or _NO_NORM[1]),
        )
        # Not saved: they belong to the weights' config, and a student's file holds only weights.
        for name, values in (("mean", self.view.mean), ("std", self.view.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.crop_pct = float(config.get("crop_pct") or 1.0)
        self.class_names: tuple[str, ...] = tuple(config.get("label_names") or ())
        self.license: str | None = config.get("license")
        self.new_classifier: nn.Module | None = None
        self._options: dict[str, bool] = {}
        if self.is_timm and getattr(module, "num_prefix_tokens", 0):
            parameters = inspect.signature(self.model.forward_intermediates).parameters
            if "return_prefix_tokens" in parameters:
                self._options = {"return_prefix_tokens": True}
        self._tail: Tail | None = None
        self._probe(branch_design)

    def _probe(self, branch_design: BranchDesign | None) -> None:
        """Learn taps, shapes, widths and how the head splits from one random image."""
        _require_whole_patches(self)
        self.taps: tuple[int, ...] = ()
        self._stem: str | None = None
        self._final_is_stage_4 = False
        self._last_layer: LastLayer | None = None
        with torch.no_grad(), evaluating(self.model):
            images = probe_images(self.image_size, like=self.mean)
            with AttentionSeen() as attention:
                final, levels = self.intermediates(images, indices=None)
            if len(levels) == 3 and self.is_timm:
                self._stem = first_module(self.model, lambda: self.intermediates(images, None))
                final, levels = self.intermediates(images, indices=None)
            if len(levels) < 4:
                raise ModelError(
                    f"{self.name} has {len(levels)} levels of features, 4 are needed, or 3 and a "
                    "stem",
                    hint="choose a model with more levels; `anykd models` lists names",
                )
            sizes = [tuple(stage.shape[-2:]) for stage, _ in levels]
            self.columnar = len(set(sizes)) == 1
            self.taps = pick_taps(len(levels), columnar=self.columnar)
            # MobileNetV2 and EfficientNet widen the last level once more before pooling; OFA's
            # fourth stage is that wider map.
            last, _ = levels[self.taps[-1]]
            self._final_is_stage_4 = (
                isinstance(final, Tensor)
                and final.ndim == 4
                and final.shape[-2:] == last.shape[-2:]
                and final.shape[1] != last.shape[1]
            )
            pooled = self.model.forward_head(final, pre_logits=True)
            logits = self.model.forward_head(final)
            headless = _is_headless(self.model, pooled, logits)
            if not headless:
                self._last_layer = find_last_layer(self.model, pooled, logits)
            features = self._features(final, [levels[i] for i in self.taps])
        self.shapes = tuple(_shape(stage) for stage in features.stages)
        prefix = features.prefixes[2]
        self.num_prefix_tokens = 0 if prefix is None else prefix.shape[1]
        token = getattr(self.model, "cls_token", None)
        self.has_class_token = self.num_prefix_tokens > 0 and (
            not self.is_timm or token is not None
        )
        self.width: int = features.pooled.shape[1]
        self.num_classes: int = 0 if headless else features.logits.shape[1]
        modules = self.stage_modules
        self.kind: Kind = kind_of(
            self.model, modules, columnar=self.columnar, attention=attention.seen
        )
        self.branch_design: BranchDesign = branch_design or branch_design_of(
            self.kind, columnar=self.columnar
        )

    @property
    def name(self) -> str:
        """Architecture as timm calls it, or the name that the module gives itself."""
        config = getattr(self.model, "pretrained_cfg", None) or {}
        return config.get("architecture") or type(self.model).__name__

    @property
    def interpolation(self) -> str:
        """How images of another size are resized."""
        return self.view.interpolation

    @property
    def stage_modules(self) -> tuple[str, ...]:
        """Path of the module that ends each stage, as timm's feature info gives it, where it does.

        Some families' info names modules that are not there; those are left out.
        """
        info: Any = getattr(self.model, "feature_info", ())
        dicts = info.get_dicts() if hasattr(info, "get_dicts") else info
        offset = 0 if self._stem is None else 1
        known = {path for path, _ in self.model.named_modules()}
        paths = [
            dicts[i - offset]["module"] for i in self.taps if offset <= i < len(dicts) + offset
        ]
        return tuple(path for path in paths if path in known)

    def prepare(
        self, images: Float[Tensor, "batch 3 height width_px"]
    ) -> Float[Tensor, "batch 3 own_height own_width"]:
        """Resize images in [0, 1] to the model's size and normalise them its way."""
        return self.look(Views(images))

    def look(self, views: Views) -> Float[Tensor, "batch 3 own_height own_width"]:
        """The images as this model sees them; computed once for all models of equal views."""
        return views.of(self.view, self.mean, self.std)

    def forward(self, images: Float[Tensor, "batch 3 height width_px"] | Views) -> Features:
        """Run the model once and keep its stages.

        Args:
            images: RGB in [0, 1]; or the `Views` of them that several models share.
        """
        final, levels = self.intermediates(images, indices=list(self.taps))
        return self._features(final, levels)

    def intermediates(
        self,
        images: Float[Tensor, "batch 3 height width_px"] | Views,
        indices: list[int] | None,
    ) -> tuple[Any, list[Level]]:
        """Run the model to its final feature, before pooling, and keep levels on the way.

        Args:
            images: RGB in [0, 1], or the `Views` of them.
            indices: The levels to keep; None keeps all.

        Returns:
            The final feature in the model's own layout, and each level as (map, prefix tokens).
        """
        views = images if isinstance(images, Views) else Views(images)
        x = self.look(views)
        if not self.is_timm:
            stages, final = self.model.forward_stages(x)
            kept = stages if indices is None else [stages[i] for i in indices]
        elif self._stem is None:
            final, kept = self.model.forward_intermediates(x, indices=indices, **self._options)
        else:
            final, kept = self.model.forward_intermediates(x, **self._options)
            kept = [self._run_stem(x), *kept]
            kept = kept if indices is None else [kept[i] for i in indices]
        return final, [level if isinstance(level, tuple) else (level, None) for level in kept]

    def _run_stem(self, x: Tensor) -> Tensor:
        """What the stem makes of the image, as a map: stage 1 of a model of three levels.

        The model has run it on these images already: its batch statistics count once.
        """
        assert self._stem is not None
        stem = self.model.get_submodule(self._stem)
        with batch_statistics_kept((stem,)):
            return as_map(stem(x), self.image_size)

    def _features(self, final: Any, levels: list[Level], *, tail: bool = False) -> Features:
        stages = [stage for stage, _ in levels]
        if self._final_is_stage_4 and not tail:
            stages[-1] = final
        pooled = self.model.forward_head(final, pre_logits=True)
        if self.new_classifier is not None:
            logits = self.new_classifier(pooled)
        elif self._last_layer is not None:
            logits = self._last_layer(self.model, pooled)
        else:
            logits = self.model.forward_head(final)
        return Features(tuple(stages), tuple(prefix for _, prefix in levels), pooled, logits)

    def _apply(self, fn: Any, recurse: bool = True) -> "StagedModel":
        """Take the tail's constants along wherever parameters and buffers go."""
        super()._apply(fn, recurse)
        if self._tail is not None:
            self._tail = self._tail.moved(fn)
        return self

    def replace_classifier(self, classifier: nn.Linear) -> None:
        """Score classes by another linear layer on the pooled vector from now on.

        It stands beside the model, whose own classifier is left as it is: this is for teachers, not
        for a student that is to be saved.

        Args:
            classifier: From ``width`` to the classes.
        """
        if classifier.in_features != self.width:
            raise ModelError(
                f"the classifier takes vectors of {classifier.in_features}, {self.name} gives "
                f"{self.width}"
            )
        self.new_classifier = classifier.to(self.mean.device)
        self.num_classes, self.class_names = classifier.out_features, ()

    @property
    def tail_is_found(self) -> bool:
        """Whether anyone has asked for the tail so far."""
        return self._tail is not None

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
                missing or too many, or the map has other channels.
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
        return self._features(tail.run(self.model, stage3_map, prefix), [], tail=True)

    @property
    def tail_modules(self) -> tuple[nn.Module, ...]:
        """The modules that the tail runs before the head."""
        return self.require_tail().modules(self.model)

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


def _is_headless(model: Any, pooled: Tensor, logits: Tensor) -> bool:
    if hasattr(model, "get_classifier"):
        return isinstance(model.get_classifier(), nn.Identity)
    return pooled.shape == logits.shape and torch.equal(pooled, logits)


def _is_timm(module: nn.Module) -> bool:
    """Whether a module is timm's, and no other's that could not be used.

    Raises:
        ModelError: If it is neither a timm classifier nor a `Backbone`.
    """
    if isinstance(module, Backbone):
        return False
    missing = [
        name
        for name in ("forward_intermediates", "forward_head", "feature_info")
        if not hasattr(module, name)
    ]
    if missing:
        raise ModelError(
            f"{type(module).__name__} is no timm classifier: it lacks {', '.join(missing)}",
            hint="models come from timm.create_model, or anykd.models.create_staged by name; "
            "another module needs forward_stages and forward_head (anykd.models.Backbone)",
        )
    return True
