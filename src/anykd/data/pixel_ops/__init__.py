"""RandAugment's operations on whole batches of bytes, as timm and Pillow do them to one image."""

from .batch import SUPPORTED as SUPPORTED
from .batch import Op as Op
from .batch import apply_ops as apply_ops
