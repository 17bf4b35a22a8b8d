"""`python -m clivefs.cli`: the same as the installed `clivefs`."""

import sys

from clivefs.cli.main import main

sys.exit(main())
