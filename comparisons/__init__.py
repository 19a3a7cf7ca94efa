"""Where limits and networks meet."""

import finite  # noqa: F401  (before what takes longer: it sees whether ``limits`` is ours; limits/command/start.py)
import limits  # noqa: F401
