"""A teacher's answers, stored: tensors in, files out, and tensors again.

One record for every view and slot, where a slot is the place of an image in the order of a view. A
`Codec` says what a record holds, a `Manifest` what a cache was made of; `CacheWriter` writes the
files and `Cache` reads them. Nothing here knows teachers or images.
"""

from .codec import Codec as Codec
from .layout import Layout as Layout
from .layout import ShardKey as ShardKey
from .manifest import DataPart as DataPart
from .manifest import Manifest as Manifest
from .manifest import TeacherPart as TeacherPart
from .manifest import TeacherView as TeacherView
from .manifest import ViewsPart as ViewsPart
from .store import Cache as Cache
from .writer import CacheWriter as CacheWriter
