"""What every door does alike: compose the configuration, type it, run, and turn bad input into one clear message."""

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from distill.config import Config, from_mapping
from distill.errors import OtherRankError, UserError, of_file_system, of_missing_package
from distill.naming import check_names, expanded, run_name

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = str(Path(__file__).resolve().parent.parent / "conf")
INTERRUPTED = 128 + signal.SIGINT  # the exit code, as a shell has it


class ChecksFailed(Exception):
    """What was asked for is made and kept, and may not be used: exit code 1, or in a multirun a failed run of it."""


def door(stage: Callable[[Config], Any]) -> Callable[[], Any]:
    """Turn `stage(config)` into a Hydra entry point that exits with 2 and one message on bad input.

    `UserError` is what a user can mend, and so are full disks and missing permissions; anything else is
    our defect and keeps its traceback.
    """

    def run(cfg: "DictConfig") -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        from distill.studies import Pruned

        values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        try:
            with surroundings_explained():
                refuse_multirun_of_ranks()
                logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports kernels that a CPU does without
                return stage(typed(values, HydraConfig.get().overrides.task))
        except Pruned as stopped:
            return stopped.log_loss
        except (UserError, ChecksFailed) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # to the sweeper: the other runs go on
            refuse(error)  # from here, because Hydra would print a line of its own first

    def main() -> None:
        with plain_ends():
            # Imported here: a Ctrl-C while it loads is answered like any other.
            import hydra
            from hydra.errors import HydraException
            from omegaconf import OmegaConf
            from omegaconf.errors import OmegaConfBaseException

            from distill.naming import home

            os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's own errors rise to here
            OmegaConf.register_new_resolver("home", home, replace=True)
            try:
                with surroundings_explained():
                    hydra.main(version_base="1.3", config_path=CONF, config_name="config")(run)()
            except (HydraException, OmegaConfBaseException, UserError, ChecksFailed) as error:
                refuse(error)

    return main


def typed(values: Mapping[str, Any], overrides: Iterable[str]) -> Config:
    """The configuration of the plain nested `values` that `overrides` led to, its paths expanded and its run named.

    Raises one `UserError` for all that is of the wrong type, and one for names that no folder can have.
    """
    config = from_mapping(Config, {**expanded(values), "run": ""})
    check_names(values)
    return replace(config, run=run_name(config.name, overrides))


class surroundings_explained:  # a context manager, as `suppress` is one
    """Turn what a full disk, a missing permission, too long a name or a package that is not installed gives into a
    `UserError`, whoever met it.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and (said := of_file_system(error) or of_missing_package(error)):
            raise UserError(said) from error


@contextmanager
def plain_ends() -> Iterator[None]:
    """On Ctrl-C, and where standard output is closed or full, end with a line at most and the exit code of that."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if not isinstance(lost_output(), BrokenPipeError):
            raise
        sys.exit(1)  # `head` has read enough: no reason for a word
    finally:
        lost = lost_output()
    if isinstance(lost, BrokenPipeError):
        sys.exit(1)
    if lost is not None:
        refuse(UserError(f"what was made is kept, but standard output cannot be written: {lost.strerror}"))


def lost_output() -> OSError | None:
    """Flush standard output. Where it takes nothing, give why, and let what follows, Python's own flush too, go."""
    out = sys.__stdout__
    if out is None or out.closed:
        return None
    try:
        out.flush()
        poll = select.poll()
        poll.register(out.fileno(), 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):  # nobody holds the pipe's other end
            raise BrokenPipeError
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return error
    return None


def launched_ranks() -> int:
    """How many ranks the deepspeed launcher, or another one, started this process as one of; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def refuse_multirun_of_ranks() -> None:
    """Raise `UserError` for `-m` under the deepspeed launcher: the ranks of a second run would not find each other."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config, ranks = HydraConfig.get(), launched_ranks()
    if hydra_config.mode == RunMode.MULTIRUN and ranks > 1 and hydra_config.launcher._target_.endswith("BasicLauncher"):
        raise UserError(
            f"-m with {ranks} ranks: start one command for each run, or let a launcher give each run its ranks: "
            f"python -m distill.student -m ... hydra/launcher=local hydra.launcher.tasks_per_node={ranks}"
        )


def refuse(error: Exception) -> NoReturn:
    """Say what is wrong, without a traceback, and exit with 2, or with 1 where what was made failed its checks."""
    if not isinstance(error, OtherRankError):
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1 if isinstance(error, ChecksFailed) else 2)
