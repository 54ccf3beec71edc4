"""Any model as four stages and a head, and the modules that join two models."""

from .staged import StagedModel as StagedModel
from .teacher import FrozenTeacher as FrozenTeacher
from .zoo import create_staged as create_staged
from .zoo import model_names as model_names
from .zoo import require_known as require_known
from .zoo import save_model as save_model
