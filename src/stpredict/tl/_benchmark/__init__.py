"""Runs of `tl.benchmark` and `tl.unseen_genes`: folds, fitting, scoring."""
