"""Training scripts, run as `python -m train.NAME` from the repository root."""

import sys

# `python -m train.NAME`: NAME is not imported yet, and a traceback of its imports would help nobody.
if sys.argv[:1] == ["-m"]:
    from train.run.requirements import one_line, require_all

    sys.excepthook = one_line
    require_all()
