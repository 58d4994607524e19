"""Judging the answers of a study: the questions, the scores, and the reliability of the judge."""
