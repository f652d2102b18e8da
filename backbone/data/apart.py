"""Imported by the server that forks loader processes, before all else, and by nobody else: it leaves the process group
of the job, and what it forks with it.

Ctrl-C at a terminal, `timeout` and many a scheduler signal the whole group. A job that is told to stop goes on for a
step or two and saves; its loaders have to go on as long. That they end when it does is their own affair: see
`backbone.data.batches.begin`.
"""

import os

os.setpgrp()
