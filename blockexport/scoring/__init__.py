"""Block importance: a trained model and data in, `BlockScores` out; one method a file."""

from blockexport.scoring.score import SCORING_METHODS, score

__all__ = ["SCORING_METHODS", "score"]
