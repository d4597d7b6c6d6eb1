"""Turn an export into a Kaggle notebook that needs no internet: python -m distill.kaggle +exp=demo output=folder

deploy/kaggle/README.md tells what to do with the folder.
"""

from distill.config import Config
from distill.entry_point import entry_point


def main(config: Config) -> None:
    from deploy.kaggle.bundle import write_bundle

    write_bundle(config)


if __name__ == "__main__":
    entry_point(main)()
