"""`python -c FOREGROUND …` is `python …`, interrupted by SIGINT wherever it is started.

A shell in the background has its children ignore interruptions, and so would those that the tests start.
"""

FOREGROUND = ("import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
              "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])")  # fmt: skip
