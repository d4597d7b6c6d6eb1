"""Pack a trained judge and its export into a folder that is small enough to be shipped.

Its canaries hold texts of the data that it learned from: look first whether these may be shipped.

python -m proof.ship artifacts/students/proof_human/fold=0 artifacts/exports/proof_human/merged judges/human
"""

import argparse
from pathlib import Path

from students.export.packing import pack
from students.trained import open_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="what distill.student wrote")
    parser.add_argument("export", type=Path, help="what distill.export made of it, merged and in fp32")
    parser.add_argument("output", type=Path)
    parser.add_argument("--root", type=Path, default=Path("artifacts"))
    told = parser.parse_args()
    pack(open_trained(told.run, told.root, "make student"), told.export, told.output)
    size = sum(path.stat().st_size for path in told.output.rglob("*") if path.is_file())
    print(f"{told.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
