"""An entry point's command line beyond Hydra's own: `--help` on its keys, and a word on those that are misspelt."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.exits import refuse
from core.renamed import advice
from core.suggestions import keys, of_override
from distill.config import Config

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = str(Path(__file__).resolve().parent.parent / "conf")
WIDEST = 120


def refuse_old_keys(arguments: Iterable[str]) -> None:
    """Say what to do about an override whose key earlier versions knew: Hydra would only say that there is none."""
    found = []
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        group, at, place = key.rpartition("@")
        remedy = advice(place) if "=" in argument or argument.startswith("~") else None
        if key == "canaries" and not {*value.strip("'\"").split(",")} <= {"refuse", "warn"}:
            continue  # it chooses a file of the group that has this name now
        if remedy:
            found.append(f"{key}: {remedy.replace('called ', f'called {group}{at}')}")
    if found:
        refuse(UserError("; ".join(found)))


def composed(overrides: Sequence[str]) -> "DictConfig":
    """The configuration as `hydra.main` composes it, in half its time: it does so twice, the first time for `-m`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    if flags := [override for override in overrides if override.startswith("-")]:
        raise UserError(f"{', '.join(flags)}: this command only looks and takes no flags but --help")
    with initialize_config_dir(CONF, version_base="1.3"):
        found = compose("config", overrides=[*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(found)
    with open_dict(found):
        del found["hydra"]
    return found


def print_help(does: str, reads: Sequence[str], arguments: Sequence[str]) -> None:
    """Print what a command `does` and the keys that it `reads`, with the values that they have under `arguments`."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from core.explained import explained
    from core.help import document, key_lines, wrapped

    overrides = [argument for argument in arguments if not argument.startswith("-")]
    with initialize_config_dir(CONF, version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    width, there = min(WIDEST, shutil.get_terminal_size().columns), choices()
    last = (
        f"+exp=NAME takes an experiment: {', '.join(there['exp'])}. KEY=VALUE sets a key, GROUP=CHOICE takes a file of "
        "conf/GROUP. With -m a key may have several values, A,B: one run each. --hydra-help tells Hydra's own flags."
    )
    lines = key_lines(values, explained(Config), there, reads, width)
    print(*document(does, width), *lines, "", *wrapped(last, width), sep="\n")


def choices() -> dict[str, list[str]]:
    """The files of each group of conf/, by name."""
    groups = {path.parent for path in Path(CONF).glob("*/**/*.yaml")}
    return {str(group.relative_to(CONF)): sorted(path.stem for path in group.glob("*.yaml")) for group in groups}


def told(error: Exception, arguments: Sequence[str]) -> Exception:
    """What to tell of Hydra's `error`: the key or choice that was probably meant, where that is what it is about."""
    said = of_override(str(error), arguments, [*keys(Config)], choices())
    if said is None and (unread := getattr(error, "override", None)):  # Hydra's grammar does not know what it is
        key, first = unread.partition("=")[0], str(error).splitlines()[0]
        said = f"{unread}: {first}; a value with = , : or brackets goes into quotes within quotes: '{key}=\"VALUE\"'"
    return UserError(said) if said else error
