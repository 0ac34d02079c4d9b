"""Run the stages that a test has described, also as one process of a group (not a test).

run_stages.py FILE: a JSON list of stage, kind of config, values.
"""

import json
import sys
from pathlib import Path

from rolib import config, stages

for stage, kind, values in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    getattr(stages, stage)(getattr(config, kind)(**values))
