"""`python -m tests.process.servers [--json] [NAME …]`: run rows of the matrix, and print the table.

Without names, all rows run; a name may be a part of a row's name. `--json` prints one object per line, as
each row ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.process.servers.harness import missing, run
from tests.process.servers.rows import ROWS
from tests.process.servers.table import record, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.process.servers", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only rows with this in their name")
    arguments = parser.parse_args()
    records = []
    for row in ROWS:
        if arguments.names and not any(name in row.name for name in arguments.names):
            continue
        problem = missing(row)
        if problem is not None:
            print(f"{row.name}: {problem}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as directory:
            records.append(record(row, run(row, Path(directory))))
        if arguments.json:
            print(json.dumps(records[-1]), flush=True)
    if not arguments.json:
        print(table(records))


if __name__ == "__main__":
    main()
