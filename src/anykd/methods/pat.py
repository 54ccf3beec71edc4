"""PAT: the student looks from the teacher's side, and the teacher bends towards the student."""

from typing import Annotated, Literal, final

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from anykd.distributed import sum_over_ranks
from anykd.losses import kd_loss, pyramid_loss
from anykd.models import FrozenTeacher, StagedModel
from anykd.models.branches import initialise
from anykd.models.prompts import FeedbackPrompt
from anykd.models.regions import RegionAwareAttention
from anykd.types import Batch, FeaturePart, Features, Stage, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["PAT"]

_STAGES: tuple[Stage, ...] = (1, 2, 3, 4)
_TAIL_STAGE = 3


@final
class PAT(Method):
    """Blend all stages of the student by attention, and adapt the teacher's by feedback prompts.

    loss = cross-entropy + kd_weight · kd_loss + Σ over stages of
    (feature_weight · pyramid_loss(blended, adapted) + guard_weight · guard(adapted, teacher's))

    Attention over regions of all four stages gives, for each stage, what the student would see
    from the teacher's side. A prompt block on each of the teacher's stages adds a residual to its
    map, computed from the map and from the feedback: blended minus teacher's. The teacher itself
    stays frozen. Attention and prompts exist in training only.

    Why student and teacher cannot agree on nothing: the guard. Where it compares maps, it is the
    pyramid loss Q once more. With β = ``feature_weight``, γ = ``guard_weight`` and any adapted map,

        β Q(blended, adapted) + γ Q(adapted, teacher's) ≥ β γ / (β + γ) · Q(blended, teacher's):

    the sum vanishes only where the student has the teacher's own map, and prompts that could do
    anything would leave just that regression. Where it compares class scores (stage 3, which the
    teacher's own stage 4 and head score anew), maps without content give all images the same
    scores, whose divergence from the teacher's is positive. A class token would bring content past
    the prompts, so that ``guard="auto"`` compares maps there. And ``guard_weight`` cannot be 0.

    Source:
        Lin et al., "Perspective-Aware Teaching: Adapting Knowledge for Heterogeneous
        Distillation", ICCV 2025, arXiv:2501.08885. Known to us from its abstract, from readers'
        summaries (the four terms of the loss, one attention over the patches of all stages, the
        feedback, a divergence of class scores as guard) and from the authors' settings for
        detection (github.com/jimmylin0979/PAT, detection/model/config.py). Not checked against
        the paper's text or the authors' code.

    Departures: the prompts stand behind the teacher's stages, so that the teacher runs once; in
    the paper they stand in front. So class scores can guard only the third stage's, and that not
    beside a class token; maps guard the rest. The feedback of the previous step is the mean over
    its images (of all ranks), kept in a buffer; in the paper it is made of their features. Ours,
    where we found nothing: the form of both blocks, ``prompt_width``, norm and positions before
    the attention, at most 4x4 cells to a region, one weight for all stages, the unprompted
    teacher's scores in ``kd_weight``.
    """

    class Config(MethodConfig):
        """Hyper-parameters of PAT."""

        kd_weight: Annotated[
            NonNegativeFloat, Paper("1 in the authors' settings for detection")
        ] = 1.0
        """Factor on the divergence from the teacher's class distribution; 0 takes a teacher of any
        classes."""
        temperature: Annotated[PositiveFloat, Paper("1 in the authors' settings for detection")] = (
            1.0
        )
        """Divides the scores in that divergence."""
        feature_weight: Annotated[
            PositiveFloat, Paper("1 in the authors' settings for detection")
        ] = 1.0
        """β: factor on the difference of the maps."""
        guard_weight: Annotated[
            PositiveFloat, Paper("1 in the authors' settings for detection")
        ] = 1.0
        """γ: factor on how far the prompts move the teacher; without it nothing would be learnt."""
        guard: Literal["auto", "logits", "maps"] = "auto"
        """What holds the adapted stage 3: the class scores that the teacher's stage 4 gives it, or
        its map. Auto takes the scores where stage 4 can be run by itself and reads nothing beside
        the map, such as a class token. Of the other stages the map is held."""
        prompt_stages: Annotated[
            tuple[Stage, ...], Paper("[1, 2, 3, 4], by a reader's summary")
        ] = _STAGES
        """Stages of the teacher that prompts adapt, 1 (early) to 4 (late); none leaves it as it
        is."""
        prompt_width: PositiveInt = 64
        """Channels within a prompt block."""
        feedback: Annotated[
            Literal["previous", "current", "none"],
            Paper("features of the previous iteration, by a reader's summary"),
        ] = "previous"
        """What the prompts see of the student: its mean error in the step before, its error in each
        image at hand (which they can copy), or nothing."""
        detach_feedback: bool = True
        """Whether the feedback of the images at hand leaves the student alone; that of the step
        before always does."""
        region_grid: Annotated[
            PositiveInt, Paper("80 regions over 5 stages in the authors' settings for detection")
        ] = 4
        """Regions per side of each student stage; a smaller stage has one for each position."""
        region_width: Annotated[
            PositiveInt, Paper("512 in the authors' settings for detection")
        ] = 512
        """Width of the attention."""

        @model_validator(mode="after")
        def _fields_fit(self) -> "PAT.Config":
            if len(set(self.prompt_stages)) != len(self.prompt_stages):
                raise ValueError(f"prompt_stages holds a stage twice: {list(self.prompt_stages)}")
            if not self.detach_feedback and self.feedback != "current":
                raise ValueError(
                    f'detach_feedback = false needs feedback = "current", got "{self.feedback}"'
                )
            return self

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The stages, and the class scores where the divergence is computed."""
            return frozenset(("stages", "logits") if self.kd_weight else ("stages",))

    config: Config
    guards_logits: bool | None = None

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Config) -> None:
        super().__init__(student, teacher, config)
        shapes = self.teacher.shapes
        self.regions = RegionAwareAttention(
            student.shapes, shapes, grid=config.region_grid, width=config.region_width
        )
        # Like FitNet's aligners; the prompts set their own, as they start from doing nothing.
        initialise(self.regions)
        self.prompts = nn.ModuleDict()
        for stage in sorted(config.prompt_stages):
            shape = shapes[stage - 1]
            self.prompts[str(stage)] = FeedbackPrompt(
                shape[0], config.prompt_width, feedback=config.feedback != "none"
            )
            if config.feedback == "previous":
                self.register_buffer(f"feedback_stage{stage}", torch.zeros(shape))
        self.guards_logits = self._tail_is_wanted()

    @property
    def reads(self) -> frozenset[FeaturePart]:
        """Where the guard compares class scores, these too."""
        # Asked in every step, and looking for a tail that is not there takes long.
        guards = self.guards_logits if self.guards_logits is not None else self._tail_is_wanted()
        return self.config.reads | (frozenset(("logits",)) if guards else frozenset())

    def _tail_is_wanted(self) -> bool:
        if _TAIL_STAGE not in self.config.prompt_stages:
            return False
        if self.config.guard == "logits":
            self.teacher.model.require_tail()
            return True
        may = self.config.guard == "auto" and self.teacher.num_prefix_tokens == 0
        return may and self.teacher.model.has_tail

    @property
    def runs_tail(self) -> bool:
        """Where class scores guard the third stage."""
        return self._tail_is_wanted()

    def joins(self) -> tuple[Join, ...]:
        """What is blended for each stage and what it meets, and the class scores."""
        regions = self.regions
        found = []
        for stage, fold, unfold in zip(_STAGES, regions.fold, regions.unfold, strict=True):
            prompt = dict(self.prompts).get(str(stage))
            how = "regions in and out" + ("" if prompt is None else "; feedback prompt")
            found.append(self.join(stage, how, fold, unfold, prompt))
        how = f"attention of width {self.config.region_width} over {sum(regions.tokens)} regions"
        found.append(self.join("stages", how, regions.norm, regions.positions, regions.qkv))
        if self.config.kd_weight:
            found.append(self.join("logits", "divergence of the class scores"))
        return tuple(found)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute the divergence, and for each stage the difference of the maps and the guard."""
        config = self.config
        terms: Terms = {}
        if config.kd_weight:
            loss = kd_loss(student.logits, teacher.logits, temperature=config.temperature)
            terms["pat_logits"] = config.kd_weight * loss
        blended = self.regions(student.stages)
        for stage, own, target in zip(_STAGES, blended, teacher.stages, strict=True):
            adapted = target
            if str(stage) in self.prompts:
                adapted = self.prompts[str(stage)](target, self._feedback(stage, own, target))
                guard = self._guard(stage, adapted, teacher)
                terms[f"pat_guard{stage}"] = config.guard_weight * guard
            terms[f"pat_stage{stage}"] = config.feature_weight * pyramid_loss(own, adapted)
        return terms

    def _feedback(
        self,
        stage: Stage,
        own: Float[Tensor, "batch chan height width"],
        target: Float[Tensor, "batch chan height width"],
    ) -> Float[Tensor, "batch chan height width"] | None:
        """What the prompts of a stage see of the student; takes in what the next step will see."""
        if self.config.feedback == "none":
            return None
        error = own - target
        if self.config.feedback == "current":
            return error.detach() if self.config.detach_feedback else error
        memory: Tensor = getattr(self, f"feedback_stage{stage}")
        previous = memory.clone()  # the graph keeps what it saw
        if self.training:
            exact = torch.promote_types(error.dtype, memory.dtype)
            images = torch.tensor(len(error), device=error.device)
            total = sum_over_ranks(error.detach().sum(dim=0, dtype=exact))
            memory.copy_(total / sum_over_ranks(images))
        return previous.expand_as(target)

    def _guard(
        self, stage: Stage, adapted: Float[Tensor, "batch chan height width"], teacher: Features
    ) -> Float[Tensor, ""]:
        """How far the prompts of a stage have moved the teacher."""
        if stage == _TAIL_STAGE and self.guards_logits:
            scored = self.teacher.tail(adapted, teacher.prefixes[stage - 1])
            return kd_loss(scored.logits, teacher.logits)
        return pyramid_loss(adapted, teacher.stages[stage - 1])
