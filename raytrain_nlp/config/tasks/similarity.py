"""`task:` of sentence similarity: vectors of texts. Columns and losses are those of sentence-transformers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from raytrain_nlp.config.base import Section

RANKING = "multiple-negatives-ranking"


class SentenceSimilarity(Section):
    """Give each text a vector, so that texts of like meaning have vectors that are near each other."""

    type: Literal["sentence-similarity"]
    text_columns: list[str] = Field(["anchor", "positive"], min_length=2)
    """Columns of texts: an anchor, what is right for it, and any number of columns that are wrong for it (hard
    negatives); with score_column two texts."""
    score_column: str | None = None
    """Column with a number for each pair: how similar its texts are. None: rows have no scores."""
    loss: Literal["multiple-negatives-ranking", "cosent", "cosine-similarity"] | None = None
    """As sentence-transformers' MultipleNegativesRankingLoss, whose negatives are all other rows of the global batch
    on all workers (gather_across_devices); CoSENTLoss, over all pairs of rows of the global batch; or
    CosineSimilarityLoss. None: multiple-negatives-ranking, with score_column cosent."""
    scale: float = Field(20.0, gt=0)
    """What similarities are multiplied by in the loss: 1 / temperature. With similarity dot usually 1."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """How near two vectors are."""
    symmetric: bool = False
    """In the ranking also find the anchor of each positive among all anchors."""
    mask_duplicates: bool = False
    """In the ranking a text equal to a row's own positive is no negative of the row, nor is the positive of a row with
    an equal anchor. In place of sentence-transformers' NO_DUPLICATES, which chooses other batches."""
    pooling: Literal["mean", "cls", "max", "lasttoken"] = "mean"
    """How the vectors of a text's tokens become one: their mean, the first, the largest values, the last."""
    normalize: bool = False
    """Make all vectors of length 1."""
    query_prompt: str = ""
    """Text put before each anchor."""
    document_prompt: str = ""
    """Text put before each text of the other columns, and in `predict` before texts of document_column."""
    document_column: str = "text"
    """Column that `predict` and `serve` read texts from where rows do not have the first of text_columns."""

    @property
    def objective(self) -> str:
        """The loss: as the job says, or as its columns do."""
        return self.loss or ("cosent" if self.score_column else RANKING)

    @property
    def compares_rows(self) -> bool:
        """Is the loss of a row one of the other rows of its global batch, too?"""
        return self.objective != "cosine-similarity"

    @model_validator(mode="before")
    @classmethod
    def _columns_of_pairs(cls, values: Any) -> Any:
        """Name the columns as usual where rows have scores and the job does not name them."""
        if isinstance(values, dict) and values.get("score_column") and "text_columns" not in values:
            return {**values, "text_columns": ["sentence1", "sentence2"]}
        return values

    @model_validator(mode="after")
    def _agree(self) -> SentenceSimilarity:
        columns = [*self.text_columns, *([self.score_column] if self.score_column else [])]
        if len(set(columns)) != len(columns):
            raise ValueError(f"text_columns: names a column twice ({', '.join(columns)}) || Give each column once.")
        if (self.objective != RANKING) != (self.score_column is not None):
            needs = "needs rows without scores" if self.score_column else "needs rows with scores"
            todo = "Use cosent or cosine-similarity" if self.score_column else f"Set score_column, or use {RANKING}"
            raise ValueError(f"loss: {needs} ({self.objective}) || {todo}.")
        if self.score_column and len(self.text_columns) != 2:
            raise ValueError("text_columns: a score is of two texts || Name two columns, or remove score_column.")
        if self.objective == "cosine-similarity" and self.similarity != "cosine":
            raise ValueError("similarity: cosine-similarity compares cosines (dot) || Remove it, or use cosent.")
        for key in ("symmetric", "mask_duplicates"):
            if getattr(self, key) and self.objective != RANKING:
                raise ValueError(f"{key}: is of the loss {RANKING} alone || Remove it.")
        if self.score_column and (self.query_prompt or self.document_prompt):
            raise ValueError("query_prompt: the texts of a scored pair are alike, and have no prompts || Remove it.")
        return self
