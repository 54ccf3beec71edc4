"""Any model as four stages and a head, and the modules that join two models."""

from .listing import describe_model as describe_model
from .listing import describe_models as describe_models
from .protocol import Backbone as Backbone
from .staged import StagedModel as StagedModel
from .stored import StoredTeacher as StoredTeacher
from .teacher import FrozenTeacher as FrozenTeacher
from .views import View as View
from .views import Views as Views
from .zoo import create_staged as create_staged
from .zoo import has_weights as has_weights
from .zoo import model_names as model_names
from .zoo import require_known as require_known
from .zoo import save_model as save_model
