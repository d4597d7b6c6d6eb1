"""A finished export, as whatever judges with it sees it: one folder that holds model, tokenizer and prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.artefacts.contents import MANIFEST
from core.artefacts.identity import identity_hash
from core.artefacts.manifest import Manifest, read_manifest
from core.errors import UserError
from core.json_files import read_json
from core.prompts import Renderer, renderer_of
from core.renamed import removed

if TYPE_CHECKING:
    from core.labels import Labels
    from core.pointwise import Choice

PACKED_RUN, PACKED_EXPORT = "run", "export"  # what a judge is packed into (`students.export.packing`)
GGUF_BACKBONE, GGUF_HEAD = "backbone.gguf", "score.safetensors"  # the files of an export for llama.cpp


@dataclass(frozen=True)
class ExportedJudge:
    """An export's folder. `renderer` makes the prompts that it was trained on, with the tokenizer in the folder.

    `given`: the folder that the user named, which is another one where a judge was packed into it.
    """

    folder: Path
    manifest: Manifest
    renderer: Renderer
    given: Path

    @property
    def name(self) -> str:
        """What a user knows it by, and the beginning of its content hash: `judges/human@9a226f4c12ab`."""
        given = self.given.resolve()
        return f"{given.parent.name}/{given.name}@{self.manifest.content[:12]}"

    @property
    def max_tokens(self) -> int:
        return self.renderer.config.max_tokens

    @property
    def labels(self) -> "Labels":
        """What it gives probabilities of."""
        from core.labels import labels_of  # imports polars, which `--help` does without

        return labels_of(self.manifest)

    @property
    def choice(self) -> "Choice | None":
        """By what a pointwise judge's rewards become logits; None of a pairwise judge."""
        from core.pointwise import JUDGE, choice_of  # imports polars

        path = self.folder / JUDGE
        return choice_of(read_json(path, "export it again, with overwrite=true")) if path.exists() else None


def export_folder(root: Path, run: str, name: str) -> Path:
    """exports/<run>/<name>, where `name` is `ExportConfig.name`."""
    return root / "exports" / run / name


def is_packed(folder: Path) -> bool:
    """Whether a judge was packed into `folder`, and is to be unpacked before anything opens it."""
    return all((folder / part / MANIFEST).exists() for part in (PACKED_RUN, PACKED_EXPORT))


def unpacked_folder(folder: Path, root: Path) -> Path:
    """Where the export lies that a packed judge is unpacked to, unpacked yet or not; of any other judge `folder`."""
    if not is_packed(folder):
        return folder
    contents = [read_manifest(folder / part, verify=False).content for part in (PACKED_RUN, PACKED_EXPORT)]
    return root / "models" / f"unpacked-{identity_hash(contents)}"


def average_folder(root: Path, method: str, contents: Sequence[str]) -> Path:
    """models/average-<method>-<hash>: the average of the folds with these content hashes, for an export."""
    return root / "models" / f"average-{method}-{identity_hash(list(contents))}"


def open_exported(folder: Path, given: Path | None = None) -> ExportedJudge:
    """Open a finished export, wherever the folder was moved to; `given` where the user named another (`unpack`).

    Raises `UserError` where it is unfinished or failed its checks (`manifest.json`, extra.failed), and where this code
    renders other prompts than it was made for.
    """
    manifest = read_manifest(folder, "export", "make export")
    if gone := removed("export.format", manifest.config.get("export", {}).get("format")):
        raise UserError(f"{folder} was written by an earlier version: {gone}")
    if failed := manifest.extra.get("failed"):
        raise UserError(
            f"{folder} failed its checks ({'; '.join(failed)}): take another format, or raise its "
            "limits and export it with overwrite=true"
        )
    return ExportedJudge(folder, manifest, renderer_of(manifest, folder, folder), given or folder)
