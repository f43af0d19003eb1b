"""This project's speed beside that of packages a researcher would otherwise use: `nox -s bench`.

Each side of a race is a process in its own environment (`sides.py` starts them), warmed up, then asked
for rounds of work in turn (`race.py`), so that what else the machine does falls on both. Every module
that a peer's environment imports needs that environment's packages alone.
"""
