"""Convert the built-in model with SkipAt, train it a little, export it, and check the file. Needs no download.

python examples/convert_skipat.py [OUT]
"""

import sys

import vitslim

DATA = "fractals:train_per_class=40,val_per_class=10"


def main(out: str) -> None:
    teacher = vitslim.open_model("builtin")
    student = vitslim.convert(teacher, "skipat", layers=range(3, 9), expansion=0.5)
    vitslim.warm_start(student, teacher, DATA, steps=60)
    vitslim.distill(student, teacher, DATA, steps=60, tokens=0.5, validate=False)
    print("teacher", vitslim.evaluate(teacher, DATA).top1)
    print("student", vitslim.evaluate(student, DATA, teacher=teacher))
    vitslim.save(student, out, overwrite=True)
    vitslim.export(out, to="onnx")
    print("parity kept:", vitslim.verify(out).passed)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "out/example")
