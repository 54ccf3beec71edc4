"""From run directories to what a person reads; it knows files, and no models."""

from .build import build_report as build_report
from .record import RunRecord as RunRecord
from .record import read_run as read_run
from .sign import Sign as Sign
from .working import judge as judge
