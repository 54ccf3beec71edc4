"""The engine trains any module that maps a batch to a `StepOutput`, and knows no more of it."""

from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .config import TrainConfig as TrainConfig
from .evaluate import Scores as Scores
from .evaluate import evaluate as evaluate
from .launch import launched as launched
from .precision import autocast as autocast
from .precision import choose_device as choose_device
from .precision import choose_dtype as choose_dtype
from .trainer import Listener as Listener
from .trainer import Trainer as Trainer
