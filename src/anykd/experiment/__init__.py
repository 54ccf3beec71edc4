"""From a recipe to a finished run: the only room that knows every part."""

from .plan import Plan as Plan
from .plan import make_plan as make_plan
from .request import distill as distill
from .request import load_recipe as load_recipe
from .run import Result as Result
from .run import run as run
from .scoring import evaluate_model as evaluate_model
