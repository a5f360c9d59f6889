"""What is redundant in a model: similarity of layers, predictability, damage of a replacement. Labels are not needed.

python examples/analyze_model.py [MODEL] [DATA]
"""

import sys

import vitslim
from vitslim.report import write_plots


def main(model: str, data: str) -> None:
    report = vitslim.analyze(model, data, images=256, replacement_images=64)
    print(report.recommended.reason)
    for path in write_plots(report, "out/analysis"):
        print(path)


if __name__ == "__main__":
    main(*(sys.argv[1:] + ["builtin", "fractals:train_per_class=2"][len(sys.argv) - 1 :]))
