"""How often the detector has to look: ids, recall and speed of the whole pipeline by detector interval, in one run.

python benchmarks/tracking.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from extras import needs

with needs("train"):
    from streampose.train.track_eval import evaluate_tracks

INTERVALS = (1, 2, 3, 5, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the pack; its validation clips are tracked")
    parser.add_argument("--intervals", type=int, nargs="+", default=INTERVALS)
    parser.add_argument("--all-clips", action="store_true", help="the training clips, too")
    options = parser.parse_args()
    splits = ("val", "train") if options.all_clips else ("val",)
    print("| detector on every n-th frame | IDF1 | MOTA | switches | fragments | CPU s |\n|---|---|---|---|---|---|")
    for interval in options.intervals:
        start = time.process_time()
        figures = evaluate_tracks(options.data, detect_every=interval, splits=splits)
        spent, whole = time.process_time() - start, figures["all"]
        print(
            f"| {interval} | {whole['idf1']:.3f} | {whole['mota']:.3f} | {whole['num_switches']:.0f} | "
            f"{whole['num_fragmentations']:.0f} | {spent:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
