"""The experiments of the hinge-KR paper: `toy` for its figures, `compare` for its comparison of methods."""
