"""The recipe of a comparison: typed and strict. Imports nothing slow: errors come at once."""

from typing import Any

from pydantic import Field, model_validator

from backbone.options import Seed, Strict

LAST = ""
"""The block of a comparison with one fine-tuning recipe, whose runs' names do not name it."""
FULL = "full"
"""What a report calls it beside the rungs of a ladder."""


class Row(Strict):
    """One backbone to compare. Exactly one of these:"""

    pretrain: str = ""
    """Recipe of jobs/pretrain.py that makes it."""

    pretrain_with: dict[str, Any] = Field(default_factory=dict)
    """Fields of that recipe that this row alone replaces, over those of the comparison."""

    artifact: str = ""
    """Folder or URL of a backbone artifact."""

    scratch: str = ""
    """Another row: its net with new weights, never pretrained. Nothing of it is fixed; where the detector's recipe
    freezes norms, it is built with group norm."""

    seeds: tuple[Seed, ...] = ()
    """Fine-tuned once with each of these; none: with the comparison's `seeds`."""

    @model_validator(mode="after")
    def _one(self) -> "Row":
        given = [field for field in ("pretrain", "artifact", "scratch") if getattr(self, field)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of pretrain, artifact, scratch, not {len(given)}")
        if self.pretrain_with and not self.pretrain:
            raise ValueError("pretrain_with is read with pretrain only")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give each once")
        return self


class Block(Strict):
    """One detector of several. The path of a recipe alone will do."""

    recipe: str
    """Recipe of jobs/finetune.py, without a backbone."""

    finetune_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace this recipe's, over those of the comparison."""

    scratch_with: dict[str, Any] = Field(default_factory=dict)
    """Likewise, in rows from scratch."""

    @model_validator(mode="before")
    @classmethod
    def _path(cls, given: Any) -> Any:
        return {"recipe": given} if isinstance(given, str) else given


class Gains(Strict):
    """Compare backbones in one detector. A YAML file gives the fields (--config FILE), the command line overrides.

    The rows are in the file: `rows: {LABEL: {pretrain: RECIPE}, LABEL: {artifact: URL}, LABEL: {scratch: LABEL}}`. Any
    field of the recipes named there can be replaced: --pretrain_with.data.train DIR, --finetune_with.optim.lr 0.01.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """The report, and the beginning of its runs' names."""

    rows: dict[str, Row] = Field(default_factory=dict)
    """Label -> backbone, in the order of the report."""

    baseline: str
    """Label of the row that the others' gains are over."""

    finetune: str | dict[str, Block]
    """Recipe of jobs/finetune.py, without a backbone. All rows are trained and judged by it; or by each of several,
    NAME -> recipe, and the report says whether they put the rows in the same order."""

    ladder: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Cheaper ways to judge, rungs: NAME -> fields that replace those of `finetune`, which is the last rung. The report
    says what each costs, and whether it gives the order of the last: --ladder.tenth.data.share 0.1."""

    pretrain_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of every row's pretraining recipe: --pretrain_with.data.train /data/imagenet/train."""

    finetune_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of the fine-tuning recipe: --finetune_with.data.train /data/coco/train2017."""

    scratch_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of the fine-tuning recipe in rows from scratch, which want about three times the steps
    of a fine-tuning (arXiv:1811.08883): --scratch_with.schedule.total 270000."""

    seeds: tuple[Seed, ...] = (0,)
    """Each backbone is fine-tuned once with each."""

    pretrain_seeds: tuple[Seed, ...] = ()
    """Each row with `pretrain` is pretrained once with each, and each of these backbones fine-tuned with `seeds`; none:
    once, with its recipe's seed. Fine-tunings are nested: a backbone of another seed than the recipe's is fine-tuned
    with seeds derived from its own and each of `seeds`, so that no two fine-tunings of a row have a seed in common."""

    storage: str = "runs"
    """Folder or URL of all runs and of the report, seen by every node."""

    parallel: int = Field(0, ge=0)
    """Most runs at a time. 0: as many as the cluster has room for."""

    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples of the validation images."""

    half_width: float = Field(1.0, gt=0)
    """Wanted of a gain's 95 % interval, points of AP: the report says how many trainings a row it takes."""

    @model_validator(mode="after")
    def _blocks(self) -> "Gains":
        several = self.finetune if isinstance(self.finetune, dict) else {}
        for what, names in (("row", self.rows), ("finetune", several), ("ladder", self.ladder)):
            for name in names:
                if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                    raise ValueError(
                        f"{what} {name!r}: use letters, digits, - _ and . (it becomes part of a run's name)"
                    )
        if isinstance(self.finetune, dict) and not self.finetune:
            raise ValueError("finetune names no recipe")
        if several and self.ladder:
            raise ValueError("ladder: its rungs are cheaper ways of one recipe, and finetune names several")
        if FULL in self.ladder:
            raise ValueError(f"ladder.{FULL}: so reports call the last rung, finetune itself; give another name")
        if empty := [rung for rung, changes in self.ladder.items() if not changes]:
            raise ValueError(f"ladder.{empty[0]}: changes nothing; the last rung, finetune itself, is always there")
        return self

    @model_validator(mode="after")
    def _possible(self) -> "Gains":
        for label, row in self.rows.items():
            if row.scratch and (row.scratch not in self.rows or self.rows[row.scratch].scratch):
                raise ValueError(f"row {label}: scratch {row.scratch!r} is not a row with a pretrained backbone")
        if self.baseline not in self.rows:
            raise ValueError(f"baseline {self.baseline!r} is not among the rows {', '.join(self.rows)}")
        if len(self.rows) < 2:
            raise ValueError("rows: comparing takes at least two")
        if self.pretrain_with and not any(row.pretrain for row in self.rows.values()):
            raise ValueError("pretrain_with is read by rows with pretrain, and there is none")
        blocks = self.finetune.values() if isinstance(self.finetune, dict) else ()
        read = self.scratch_with or any(block.scratch_with for block in blocks)
        if read and not any(row.scratch for row in self.rows.values()):
            raise ValueError("scratch_with is read by rows with scratch, and there is none")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give at least one, each once")
        if len(set(self.pretrain_seeds)) != len(self.pretrain_seeds):
            raise ValueError(f"pretrain_seeds {list(self.pretrain_seeds)}: give each once")
        if self.pretrain_seeds and not any(row.pretrain for row in self.rows.values()):
            raise ValueError("pretrain_seeds is read by rows with pretrain, and there is none")
        given = [self.pretrain_with, *(row.pretrain_with for row in self.rows.values())]
        if self.pretrain_seeds and any("seed" in fields for fields in given):
            raise ValueError("pretrain_with.seed and pretrain_seeds: give one of them")
        return self

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of all ways to judge: of the recipes, or of the rungs and last of `finetune` itself."""
        return tuple(self.finetune) if isinstance(self.finetune, dict) else (*self.ladder, LAST)

    def short(self, name: str) -> str:
        """A run's name within the comparison, which its lines and messages begin with."""
        return name.removeprefix(f"{self.name}-")
