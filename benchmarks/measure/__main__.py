"""Measures one cell in a process of its own: `python -m lookback.benchmarks.measure JOB`.

The runner starts it (run/process.py), where the cell server (server.py) does not fork it. JOB is
the file of a `Job`.
"""

import sys
from pathlib import Path

from lookback.benchmarks.measure.job import run_job
from lookback.benchmarks.record import Job

if __name__ == "__main__":
    run_job(Job.model_validate_json(Path(sys.argv[1]).read_bytes()))
