"""A trained student for deployment: timm's layout, ONNX, torch.export, with parity measured."""

from .card import CardFacts as CardFacts
from .card import Maker as Maker
from .export import ExportFormat as ExportFormat
from .export import Samples as Samples
from .export import Source as Source
from .export import check_formats as check_formats
from .export import export_student as export_student
from .exported import Exported as Exported
from .exported import table as table
from .push import check_push as check_push
from .push import push_folder as push_folder
from .signature import Signature as Signature
from .to_timm import Library as Library
from .to_timm import library_of as library_of
