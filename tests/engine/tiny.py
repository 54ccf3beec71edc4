"""Models that train in milliseconds, and batches without a data set."""

from collections.abc import Iterator
from typing import Any

import torch

from anykd.engine import TrainConfig, Trainer
from anykd.methods import Method, build_method
from anykd.models import FrozenTeacher, StagedModel, create_staged
from anykd.types import Batch

VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
CNN: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}


def vit(seed: int = 0, **options: Any) -> StagedModel:
    torch.manual_seed(seed)
    return create_staged("vit_tiny_patch16_224", num_classes=4, image_size=32, **(VIT | options))


def cnn(seed: int = 0, **options: Any) -> StagedModel:
    torch.manual_seed(seed)
    return create_staged("resnet18", num_classes=4, image_size=32, **(CNN | options))


class RandomLoader:
    """Two batches of noise an epoch: a function of the epoch alone, as every loader must be."""

    steps_per_epoch = 2

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch)
        for step in range(self.steps_per_epoch):
            images = torch.rand(8, 3, 32, 32, generator=generator)
            labels = torch.eye(4)[torch.randint(4, (8,), generator=generator)]
            if step >= skip:
                yield Batch(images, labels, torch.arange(8) + 8 * step)

    def is_even(self, step: int) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def method(name: str, student: StagedModel, teacher: StagedModel | None = None) -> Method:
    torch.manual_seed(1)
    return build_method(name, student, None if teacher is None else FrozenTeacher(teacher))


def config(**options: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 8,
        "precision": "float32",
        "log_every": 1,
        "warmup_epochs": 0,
        "diagnoses": 0,
    }
    return TrainConfig(**(defaults | options))


def trainer(method: Method, *, seed: int = 0, **options: Any) -> Trainer:
    return Trainer(
        method,
        method.student,
        RandomLoader(),
        config(**options),
        device=torch.device("cpu"),
        seed=seed,
    )
