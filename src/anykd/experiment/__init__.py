"""From a recipe to a finished run: the only room that knows every part."""

from .cache.build import build_cache as build_cache
from .cache.info import describe_cache as describe_cache
from .cache.request import cache_recipe as cache_recipe
from .cache.use import open_cache as open_cache
from .cache.verify import verify_cache as verify_cache
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate_model as evaluate_model
from .plan import Plan as Plan
from .plan import make_plan as make_plan
from .request import distill as distill
from .request import load_recipe as load_recipe
from .result import Result as Result
from .run import run as run
