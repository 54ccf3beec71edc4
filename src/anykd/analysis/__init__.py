"""What two models have in common, and how good one is: pure functions of tensors."""

from .calibration import ReliabilityBin as ReliabilityBin
from .calibration import expected_calibration_error as expected_calibration_error
from .calibration import reliability_curve as reliability_curve
from .cka import MinibatchCKA as MinibatchCKA
from .cka import linear_cka as linear_cka
from .cka import minibatch_cka as minibatch_cka
from .comparison import Agreement as Agreement
from .comparison import agreement as agreement
from .config import AnalysisConfig as AnalysisConfig
from .per_class import ClassChange as ClassChange
from .per_class import confusion_counts as confusion_counts
from .per_class import most_changed_classes as most_changed_classes
from .per_class import per_class_accuracy as per_class_accuracy
from .rank import effective_rank as effective_rank
