"""Serve an exported judge over HTTP, with a web page: python -m distill.serve +exp=demo

It listens on http://127.0.0.1:8080 until SIGTERM or Ctrl-C; docs/serve.md describes the API.
"""

from distill.artefacts import judge_folder
from distill.config import Config
from distill.entry_point import entry_point

READS = "name coverage serve scorers.exported canaries.on_failure export paths"


def main(config: Config) -> None:
    from core.exported import open_exported
    from deploy.serving.server import serve

    folder, given = judge_folder(config, config.serve.model), config.export_folder(config.serve.model)
    jobs, exported = config.root / "serve" / "jobs", open_exported(folder, given)
    serve(exported, config.scorers.exported, config.serve, jobs, config.canaries.on_failure, config.coverage)


if __name__ == "__main__":
    entry_point(main, READS, libraries=True)()
