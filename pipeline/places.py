"""Where a run's files lie, so that no stage makes up a path of its own."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.mirror import local_path


@dataclass(frozen=True)
class Places:
    """The folders of one output; everything under ``cache`` is keyed by content.

    ``shared``: another output whose cache this one uses too, as the runs of a bench do.
    """

    output: Path
    shared: Path | None = None

    @classmethod
    def of(cls, output: str) -> "Places":
        """The places of a recipe's ``output``, a path or an S3 address."""
        return cls(local_path(output))

    @property
    def cache(self) -> Path:
        return (self.shared or self.output) / "cache"

    @property
    def encodings(self) -> Path:
        return self.cache / "encodings"

    @property
    def targets(self) -> Path:
        return self.cache / "targets"

    @property
    def teachers(self) -> Path:
        return self.cache / "teachers"

    @property
    def starts(self) -> Path:
        """Students' warm starts."""
        return self.cache / "starts"

    @property
    def evaluation(self) -> Path:
        return self.cache / "evaluation"

    @property
    def captions(self) -> Path:
        """A vision-language model's captions, a file a question."""
        return self.cache / "captions"

    @property
    def judgements(self) -> Path:
        """The field's judges: a folder a judge, a file a score."""
        return self.cache / "judgements"

    @property
    def training(self) -> Path:
        """Ray Train's storage: one folder a recipe hash."""
        return self.output / "training"

    @property
    def prompts(self) -> Path:
        return self.output / "prompts.json"

    @property
    def prompts_cost(self) -> Path:
        """What a model's captions took: asks, requests, tokens, failures."""
        return self.output / "prompts_cost.json"

    @property
    def history(self) -> Path:
        """One JSON line a round, of each run that the output has had."""
        return self.output / "history.jsonl"

    @property
    def student(self) -> Path:
        """The export."""
        return self.output / "student"

    @property
    def stores(self) -> list[Path]:
        return [self.encodings, self.targets]

    def made(self) -> list[Path]:
        """What a person would look at, as far as it is there."""
        names = ("report.md", "report.json", "contact_sheet.png", "bleed_matrix.png")
        paths = [
            self.output / name
            for name in (*names, "loss_curves.png", "watch_curves.png", "student", "mlflow.db")
        ]
        return [path for path in [self.prompts, *paths] if path.exists()]
