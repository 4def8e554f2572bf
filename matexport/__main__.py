"""``python -m matexport`` is ``matexport``."""

from matexport.cli import main

raise SystemExit(main())
