"""Losses: tensors in, scalar out. Pure functions that know torch and nothing else.

Student before teacher, always; options by keyword; computed in float32 or finer whatever comes in.
"""

from .contrastive import crd_loss as crd_loss
from .contrastive import info_nce_loss as info_nce_loss
from .features import hint_loss as hint_loss
from .features import pyramid_loss as pyramid_loss
from .features import rsd_loss as rsd_loss
from .logits import dist_loss as dist_loss
from .logits import dkd_loss as dkd_loss
from .logits import kd_loss as kd_loss
from .logits import ofa_loss as ofa_loss
from .relations import correlation_loss as correlation_loss
from .relations import rkd_angle_loss as rkd_angle_loss
from .relations import rkd_distance_loss as rkd_distance_loss
