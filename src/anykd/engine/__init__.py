"""The engine trains any module that maps a batch to a `StepOutput`, and knows no more of it."""

from .checkpoint import Checkpoint as Checkpoint
from .checkpoint import newest_checkpoint as newest_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .config import TrainConfig as TrainConfig
from .diagnosis import Stopwatch as Stopwatch
from .evaluate import Scores as Scores
from .evaluate import evaluate as evaluate
from .in_flight import BadStepsError as BadStepsError
from .launch import begun_before_restart as begun_before_restart
from .launch import launched as launched
from .launch import note_begun as note_begun
from .parallel import Parallel as Parallel
from .precision import autocast as autocast
from .precision import choose_device as choose_device
from .precision import choose_dtype as choose_dtype
from .precision import precision_name as precision_name
from .scaling import LossScale as LossScale
from .signals import StopSignals as StopSignals
from .step import Stepper as Stepper
from .trainer import Listener as Listener
from .trainer import Trainer as Trainer
