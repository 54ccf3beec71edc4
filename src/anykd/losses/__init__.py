"""Losses: tensors in, scalar out. Pure functions that know torch and nothing else.

Student before teacher, always; options by keyword; computed in float32 whatever comes in.
"""

from .contrastive import info_nce_loss as info_nce_loss
from .logits import kd_loss as kd_loss
from .logits import ofa_loss as ofa_loss
