"""Probes: measurements of where in a model alignment happens.

Each takes a cell (a model of a study) and leaves one record, `outputs/<study>/<model>/probes/
<probe>.json`. A record names what it came from; it is computed again only if that has changed.
"""

from hialign.engine.models import identity as identity
from hialign.records import files as files
from hialign.records import status as status
from hialign.records.probe_files import record_of as record_of
from hialign.study import paths as paths
from hialign.study.blocks import MEASURES as MEASURES
from hialign.study.errors import HialignError as HialignError
from hialign.study.study import Cell as Cell
