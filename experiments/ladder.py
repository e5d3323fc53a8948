"""Make the rows of the ladder that notebooks have measured here the course's rows.

python -m experiments.ladder          print the ladder: the course's rows and yours
python -m experiments.ladder --store  make yours the course's
"""

import argparse
import json

from shared.files import write_atomically
from shared.ladder import STORED, rungs, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--store", action="store_true", help="yours are the course's")
    rows = list(rungs().values())
    if parser.parse_args().store:
        text = json.dumps(rows, indent=1, ensure_ascii=False)
        write_atomically(STORED, text + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
