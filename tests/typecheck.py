"""The run-time type checker of `test_api.py`, loaded by name in another process."""

import beartype

# As in Python's own rules for annotations, an int is fine where a float is expected.
checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
