"""One paper, one file; one name everywhere. A new method is a file and a line in ``METHODS``."""

from .base import Classifier as Classifier
from .base import Method as Method
from .base import MethodConfig as MethodConfig
from .base import no_labels as no_labels
from .registry import METHODS as METHODS
from .registry import build_method as build_method
from .registry import describe_method as describe_method
from .registry import method_class as method_class
from .registry import published_values as published_values
from .tables import MethodTable as MethodTable
from .tables import build_methods as build_methods
from .tables import complete_tables as complete_tables
from .tables import read_tables as read_tables
