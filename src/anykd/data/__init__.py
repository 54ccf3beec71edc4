"""Data: from a spec such as ``cifar100`` or ``./my_images`` to batches that can be replayed.

The way of an image: a *reader* yields (image, label, index); a *view* augments it by a pure
function of (seed, epoch, index); a *loader* makes a `Batch` of RGB in [0, 1] and label
distributions. Nothing here knows models, devices or how ranks talk to each other.
"""

from .augment import AugmentConfig as AugmentConfig
from .datasets import DataConfig as DataConfig
from .datasets import Split as Split
from .datasets import open_data as open_data
from .datasets import open_split as open_split
from .loaders import EvalLoader as EvalLoader
from .loaders import ReplayLoader as ReplayLoader
from .loaders import TooFewImagesError as TooFewImagesError
from .loaders import TrainLoader as TrainLoader
from .reader import DataSplits as DataSplits
from .reader import Reader as Reader
from .reader import Sample as Sample
from .reader import SubsetReader as SubsetReader
from .split import hold_out as hold_out
from .split import keep as keep
from .train_views import TrainViews as TrainViews
