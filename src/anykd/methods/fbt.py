"""FBT: fuse student and teacher into a third model that stands between them."""

import math
from dataclasses import replace
from typing import Annotated, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from anykd.distributed import gather_batch
from anykd.losses import info_nce_loss, ofa_loss
from anykd.models import FrozenTeacher, StagedModel, Views
from anykd.models.batchnorm import batch_statistics_kept
from anykd.models.branches import initialise
from anykd.models.fusion import L2G
from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Classifier, Method, MethodConfig, Paper
from .joins import Join

__all__ = ["FBT"]

_MIN_TEMPERATURE = 0.01


class _Link(nn.Module):
    """L(provider → receiver): the receiver learns the provider's vectors and class scores."""

    def __init__(self, receiver_width: int, provider_width: int, config: "FBT.Config") -> None:
        super().__init__()
        differ = config.heads == "always" or receiver_width != provider_width
        needed = differ and config.info_nce_weight > 0
        self.head = nn.Linear(receiver_width, provider_width) if needed else nn.Identity()
        self.config = config

    def forward(
        self,
        receiver: Features,
        provider: Features,
        labels: Float[Tensor, "batch classes"] | Int[Tensor, " batch"] | None,
        log_temperature: Float[Tensor, ""] | None,
    ) -> Terms:
        terms: Terms = {}
        config = self.config
        if log_temperature is not None:
            own = gather_batch(self.head(receiver.pooled))
            other = gather_batch(provider.pooled)
            temperature = log_temperature.exp()
            loss = info_nce_loss(own, other, temperature=temperature)
            if config.info_nce == "symmetric":
                loss = (loss + info_nce_loss(other, own, temperature=temperature)) / 2
            terms["info_nce"] = config.info_nce_weight * loss
        if labels is not None:
            loss = ofa_loss(receiver.logits, provider.logits, labels, gamma=config.gamma)
            terms["ofa"] = config.ofa_weight * loss
        return terms


@final
class FBT(Method):
    """Teach the student and a fusion model from the teacher, and the student from the fusion.

    loss = cross-entropy + L(teacher → student) + L(teacher → fusion) + L(fusion → student), each
    L(p → r) = info_nce_loss(vector of r, vector of p) + ofa_loss(logits of r, logits of p).

    The fusion model is stages 1 to 3 of one model, L2G, and stage 4 with the head of the other. It
    runs the very modules of student and teacher: only L2G and the heads of InfoNCE are new, and
    only the student is kept. The convolutional model stands in front, whoever teaches.

    Source:
        Li et al., "Fuse Before Transfer: Knowledge Fusion for Heterogeneous Distillation", ICCV
        2025, arXiv:2410.12342.

    Departures, where the paper is silent: pairs without a convolutional model, or with two, put
    the student in front; the linear heads stand on the receiver's side; ``detach_fusion``,
    ``info_nce`` and ``shared_temperature`` have the defaults below; batch norms of a student's
    tail keep their running statistics to unfused features; the vectors of InfoNCE are what each
    model's own head pools, which is the class token of a ViT that has one.

    The paper's ablations: A ``fusion="patch_embed"``, B ``fusion="no_tail"``, C
    ``teacher_fusion_weight=0``, D ``teacher_student_weight=0``, E ``fusion_student_weight=0``, F
    ``info_nce_weight=0``, G ``ofa_weight=0``.
    """

    class Config(MethodConfig):
        """Hyper-parameters of FBT."""

        order: Annotated[
            Literal["auto", "student_first", "teacher_first"], Paper("the CNN first")
        ] = "auto"
        """Whose stages 1 to 3 the fusion starts with; auto puts the convolutional model first."""
        fusion: Annotated[Literal["full", "no_tail", "patch_embed"], Paper('"full"')] = "full"
        """What follows stage 3: L2G and the tail; L2G, pool and a classifier; or L2G without its
        Swin block, pool and a classifier."""
        gamma: PositiveFloat = 1.0
        """Enhancement of the target class in the OFA terms."""
        ofa_weight: NonNegativeFloat = 1.0
        """Factor on every OFA term."""
        info_nce_weight: NonNegativeFloat = 1.0
        """Factor on every InfoNCE term."""
        teacher_student_weight: NonNegativeFloat = 1.0
        """Factor on L(teacher → student)."""
        teacher_fusion_weight: NonNegativeFloat = 1.0
        """Factor on L(teacher → fusion)."""
        fusion_student_weight: NonNegativeFloat = 1.0
        """Factor on L(fusion → student)."""
        detach_fusion: bool = True
        """Whether L(fusion → student) leaves the fusion alone and only pulls the student."""
        info_nce: Literal["one_way", "symmetric"] = "one_way"
        """Receivers look for providers, or the mean of both directions."""
        temperature: Annotated[PositiveFloat, Paper("0.07, trained")] = 0.07
        """Initial τ of InfoNCE; it is trained, and kept at 0.01 or above."""
        shared_temperature: bool = False
        """One τ for all three links, or one each."""
        heads: Literal["when_needed", "always"] = "when_needed"
        """Linear heads on the receivers' vectors where widths differ, or everywhere."""

        @model_validator(mode="after")
        def _something_is_transferred(self) -> "FBT.Config":
            if not self.ofa_weight and not self.info_nce_weight:
                raise ValueError(
                    "ofa_weight and info_nce_weight are both 0: use the method control"
                )
            links = (
                self.teacher_student_weight,
                self.teacher_fusion_weight,
                self.fusion_student_weight,
            )
            if not any(links):
                raise ValueError("the weights of all three links are 0: use the method control")
            return self

        @property
        def sensible_batch(self) -> int:
            """InfoNCE tells an image from the others of its batch."""
            return 16 if self.info_nce_weight else 1

        @property
        def reads_logits(self) -> bool:
            """Only the OFA terms do."""
            return self.ofa_weight > 0

        @property
        def scores_student(self) -> bool:
            """Only the OFA terms of the links to the student do."""
            to_student = self.teacher_student_weight > 0 or self.fusion_student_weight > 0
            return self.ofa_weight > 0 and to_student

        @property
        def needs_labels(self) -> bool:
            """Only where the OFA terms enhance the target class."""
            return (self.ofa_weight > 0 and self.gamma != 1) or super().needs_labels

        @property
        def fuses(self) -> bool:
            """Whether a link leads to or from a fusion."""
            return self.teacher_fusion_weight > 0 or self.fusion_student_weight > 0

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """What the teacher's links compare.

            Where it has no link, its classes still stand in for labels that are missing.
            """
            teaches = self.teacher_student_weight > 0 or self.teacher_fusion_weight > 0
            parts: dict[FeaturePart, bool] = {
                "pooled": self.info_nce_weight > 0 and teaches,
                "logits": self.ofa_weight > 0 and (teaches or not self.needs_labels),
            }
            return frozenset(part for part, read in parts.items() if read)

    config: Config

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Config) -> None:
        super().__init__(student, teacher, config)
        self.weights = {
            name: weight
            for name, weight in (
                ("teacher_student", config.teacher_student_weight),
                ("teacher_fusion", config.teacher_fusion_weight),
                ("fusion_student", config.fusion_student_weight),
            )
            if weight
        }
        self.student_first = self._student_is_first()
        widths = {"student": student.width, "teacher": self.teacher.width}
        self.l2g = self.classifier = None
        if config.fuses:
            widths["fusion"] = self._build_fusion()
        self.widths = widths
        self.links = nn.ModuleDict()
        for name in self.weights:
            provider, receiver = name.split("_")
            self.links[name] = _Link(widths[receiver], widths[provider], config)
        initialise(self.links)
        names = ["shared"] if config.shared_temperature else list(self.weights)
        start = torch.tensor(math.log(config.temperature))
        self.log_temperatures = nn.ParameterDict(
            {name: start.clone() for name in names if config.info_nce_weight}
        )

    def _student_is_first(self) -> bool:
        order = self.config.order
        if order != "auto":
            return order == "student_first"
        return self.student.kind == "conv" or self.teacher.kind != "conv"

    def _build_fusion(self) -> int:
        """Make the fusion's own modules and say how wide its vector is."""
        config, student, teacher = self.config, self.student, self.teacher
        front, tail = (student, teacher.model) if self.student_first else (teacher, student)
        assert isinstance(tail, StagedModel)
        self.l2g = L2G(front.shapes[2], tail, attention=config.fusion != "patch_embed")
        if config.fusion == "full":
            tail.require_tail()
            # Not only stage 4: the head, too, may hold batch norms.
            self._behind_l2g = (tail.model,)
            width = tail.width
        else:
            self.l2g.prefix = self.l2g.position = None
            width = tail.shapes[2][0]
            self.classifier = nn.Linear(width, student.num_classes)
        initialise(self.l2g)
        # DistributedDataParallel waits for every trainable parameter, so what nothing trains is
        # frozen: all of the fusion in ablation C, its classifier where scores are not compared.
        if config.teacher_fusion_weight == 0 and config.detach_fusion:
            self.l2g.requires_grad_(False)
        reaches_scores = config.ofa_weight and self.l2g.norm.weight.requires_grad
        if self.classifier is not None and not reaches_scores:
            self.classifier.requires_grad_(False)
        return width

    @property
    def reads(self) -> frozenset[FeaturePart]:
        """Where the teacher stands in front of the fusion, its stages too."""
        live = self.config.fuses and not self._student_is_first()
        return self.config.reads | (frozenset(("stages",)) if live else frozenset())

    @property
    def runs_tail(self) -> bool:
        """Where the teacher's stage 4 ends the fusion."""
        config = self.config
        return config.fuses and config.fusion == "full" and self._student_is_first()

    def why_stages(self) -> tuple[str, str]:
        """The fusion runs them."""
        return (
            "FBT puts the teacher first in this pair, so that its stages 1 to 3 must run live",
            'leave teacher.cache out, or set method.order = "student_first"',
        )

    def joins(self) -> tuple[Join, ...]:
        """The fusion's path, and each link's vectors and class scores."""
        found = []
        if self.l2g is not None:
            found.append(self.join(3, self._path(), self.l2g, self.classifier))
        links = {name: name.replace("_", " → ") for name in self.weights}
        if self.config.info_nce_weight:
            own = dict(self.log_temperatures)
            for name, shown in links.items():
                head = self.links[name].get_submodule("head")
                linear = isinstance(head, nn.Linear)
                how = f"{shown}: InfoNCE" + (" behind a linear head" if linear else "")
                # A shared temperature counts with the first link.
                temperature = own.pop(name, own.pop("shared", None))
                join = self.join("pooled", how, head, temperature)
                provider, receiver = (self.widths[party] for party in name.split("_"))
                found.append(replace(join, student=(receiver,), teacher=(provider,)))
        if self.config.ofa_weight:
            how = f"target-enhanced divergence: {', '.join(links.values())}"
            found.append(self.join("logits", how))
        return tuple(found)

    def _path(self) -> str:
        """The way through the fusion, with the shapes that are handed over."""
        front, behind = ("student", "teacher") if self.student_first else ("teacher", "student")
        tail = self.teacher if self.student_first else self.student
        block = "" if self.config.fusion == "patch_embed" else " + Swin block"
        end = f"{behind}'s stage 4 and head" if self.classifier is None else "pool and classifier"
        shape = "x".join(map(str, tail.shapes[2]))
        return f"fusion: {front}'s stages 1-3 → L2G (patch embedding{block}) → {shape} → {end}"

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute the terms of each link."""
        labels = self.target_labels(batch, teacher) if self.config.ofa_weight else None
        known = {"student": student, "teacher": teacher}
        if self.l2g is not None:
            known["fusion"] = self._fuse(student, teacher)
        terms: Terms = {}
        for name, weight in self.weights.items():
            provider_name, receiver = name.split("_")
            provider = known[provider_name]
            if provider_name == "fusion" and self.config.detach_fusion:
                provider = _detached(provider)
            link = self.links[name](known[receiver], provider, labels, self._log_temperature(name))
            terms |= {f"{name}_{part}": weight * term for part, term in link.items()}
        return terms

    def _log_temperature(self, name: str) -> Tensor | None:
        if not self.config.info_nce_weight:
            return None
        parameter = self.log_temperatures["shared" if self.config.shared_temperature else name]
        with torch.no_grad():  # the value itself is kept in range, so its gradient never dies
            parameter.clamp_(min=math.log(_MIN_TEMPERATURE))
        return parameter

    def _fuse(self, student: Features, teacher: Features) -> Features:
        """What the fusion knows of a batch: the vector before its classifier, and its scores."""
        assert self.l2g is not None
        front = student if self.student_first else teacher
        stage, prefix = self.l2g(front.stages[2])
        if self.classifier is not None:
            vector = stage.mean(dim=(2, 3))
            return Features((), (), vector, self.classifier(vector))
        tail = self.teacher if self.student_first else self.student
        with batch_statistics_kept(self._behind_l2g):
            return tail.tail(stage, prefix)

    def _fuse_views(self, views: Views) -> Features:
        return self._fuse(self.student(views), self.teacher(views))

    def companions(self) -> dict[str, Classifier]:
        """The fusion: its accuracy should lie between the student's and the teacher's."""
        if self.l2g is None or self.teacher.num_classes != self.student.num_classes:
            return {}
        if self.classifier is not None and not self.classifier.weight.requires_grad:
            return {}
        return {"fusion": lambda images: self._fuse_views(Views(images)).logits}

    def no_weight_decay(self) -> set[str]:
        """The temperatures, beside the student's and L2G's."""
        own = {name for name, _ in self.named_parameters() if name.startswith("log_temperatures")}
        return super().no_weight_decay() | own


def _detached(features: Features) -> Features:
    return replace(features, pooled=features.pooled.detach(), logits=features.logits.detach())
