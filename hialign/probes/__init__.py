"""Probes: measurements of where in a model alignment happens.

Each takes a cell (a model of a study) and leaves one record, `outputs/<study>/<model>/probes/
<probe>.json`. A record names what it came from; it is computed again only if that has changed.
"""

from hialign import files as files
from hialign import paths as paths
from hialign import status as status
from hialign.blocks import MEASURES as MEASURES
from hialign.errors import HialignError as HialignError
from hialign.models import identity as identity
from hialign.probe_files import record_of as record_of
from hialign.study import Cell as Cell
