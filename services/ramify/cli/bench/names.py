"""What the algorithms are called in pictures and tables."""

TITLES = {
    "best_of_n": "best-of-n",
    "best_of_n_spread": "best-of-n, spread samples",
    "self_consistency": "self-consistency",
    "beam": "beam",
    "dvts": "DVTS",
    "lookahead": "lookahead",
    "rebase": "REBASE",
    "particle": "particle filter",
    "mcts": "MCTS",
    "ab_mcts": "AB-MCTS",
    "best_first": "best-first",
    "revise": "revise",
}
