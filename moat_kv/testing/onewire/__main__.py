"""`python -m moat_kv.testing.onewire`: see `process.py`."""

import sys

from moat_kv.testing.onewire.process import main

sys.exit(main())
