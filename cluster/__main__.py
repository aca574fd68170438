"""``python -m cluster``: the same as the console script ``pdserve``."""

import sys

from cluster.cli import main

sys.exit(main())
