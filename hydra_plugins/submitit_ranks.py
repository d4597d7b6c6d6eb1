"""`hydra/launcher=slurm` and `local`: submitit's launchers, with every task of a job as one rank of one training."""

from importlib.util import find_spec
from typing import Any

from hydra.core.utils import JobReturn

# Where a rank dies alone, the others wait for it in a collective until that times out. Slurm ends them only where the
# site's KillOnBadExit says so (0 by default), and submitit leaves it at that. Not run on a cluster.
SRUN_ARGS = ["--kill-on-bad-exit=1"]


def become_rank() -> None:
    """Say in the environment which rank of the job this task is, as the `deepspeed` launcher would."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


if find_spec("hydra_plugins.hydra_submitit_launcher"):  # Hydra imports this file for every command, installed or not
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher, SlurmLauncher

    class SlurmRanks(SlurmLauncher):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings, srun_args=SRUN_ARGS)  # the plugin's own configuration has no such key

        def __call__(self, *arguments: Any, **named: Any) -> JobReturn:
            become_rank()
            return super().__call__(*arguments, **named)

    class LocalRanks(LocalLauncher):
        def __call__(self, *arguments: Any, **named: Any) -> JobReturn:
            become_rank()
            return super().__call__(*arguments, **named)
