"""The plan of a run, before any time is spent on it."""

from .finding import Finding as Finding
from .gate import kept_findings as kept_findings
from .gate import plan_again as plan_again
from .gate import plan_first as plan_first
from .make import make_plan as make_plan
from .plan import Plan as Plan
