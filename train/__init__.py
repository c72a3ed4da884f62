"""Training scripts, run as `python -m train.NAME` from the repository root."""

import sys

# With `python -m train.NAME` this runs before NAME is imported: a missing package is reported here
# in one line, where the imports of NAME would end in a traceback.
if sys.argv[:1] == ["-m"]:
    from train.run.console import escape_what_cannot_be_printed
    from train.run.requirements import one_line, require_all

    escape_what_cannot_be_printed()
    sys.excepthook = one_line
    require_all()
