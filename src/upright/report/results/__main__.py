"""Write RESULTS.md."""

import sys
from pathlib import Path

from upright.report.results import results_page

source = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
Path(sys.argv[2] if len(sys.argv) > 2 else "RESULTS.md").write_text(results_page(source), encoding="utf-8")
