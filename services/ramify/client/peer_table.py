"""What the knobs of other systems are called here: a table.

The names and defaults were read in the sources that `Peer.source` names. docs/knobs.md shows the table to people.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Ours = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Word:
    """What one of a peer's knobs is here."""

    meaning: str
    translate: Callable[[str], Ours]  # its value to knobs of ours; one that is empty is taken away
    default: str = ""  # the peer's own, where it isn't ours; translated where the knob isn't given


@dataclass(frozen=True, slots=True)
class Method:
    """An algorithm of a peer."""

    policy: str
    knobs: Mapping[str, Word]
    always: Ours = field(default_factory=dict)  # what the peer does and has no knob for


@dataclass(frozen=True, slots=True)
class Peer:
    """Another system."""

    source: str
    chooser: str  # its knob that names the algorithm
    methods: Mapping[str, Method]
    default: str = ""  # the algorithm where none is named; empty: one must be
    foreign: Mapping[str, str] = field(default_factory=dict)  # algorithms that are not here: what to do
    without: Mapping[str, str] = field(default_factory=dict)  # knobs that have no counterpart: what to do


def same(knob: str, default: str = "", note: str = "") -> Word:
    """A knob of ours under another name, or its own."""
    return Word(f"`{knob}`{note}", lambda value: {knob: value}, default)


def words(knob: str, values: Ours, default: str = "") -> Word:
    """A knob of ours whose values have other names; one that is missing has no counterpart."""

    def find(value: str) -> Ours:
        if value.lower() not in values:
            raise ValueError(f"only {', '.join(values)} have a counterpart here ({knob})")
        return {knob: values[value.lower()]}

    meaning = ", ".join(f"{theirs}: `{knob}={ours}`" for theirs, ours in values.items() if theirs not in ("1", "0"))
    return Word(meaning, find, default)


def only(value: str, instead: str) -> Word:
    """A knob of which one value alone can be had, which is what happens here anyway."""

    def check(found: str) -> Ours:
        if found.lower() != value:
            raise ValueError(f"only {value} has a counterpart here: {instead}")
        return {}

    return Word(f"only {value}: {instead}", check)


def yes_or_no(knob: str, yes: str, no: str, default: str = "") -> Word:
    """A flag."""
    return words(knob, {"true": yes, "false": no, "1": yes, "0": no}, default)


def _lookahead(steps: str) -> Ours:
    # Lookahead search carries ended chains along: it has no `finished`.
    return {} if steps == "0" else {"policy": "lookahead", "lookahead": steps, "finished": ""}


def _agreement(threshold: str) -> Ours:
    # A leader with the share t of all chains leads the next by at least 2t - 1 of them.
    return {"margin": f"{2 * float(threshold) - 1:g}"}


def _all_at_once(budget: str) -> Ours:
    return {"n": budget, "parallel": budget}


AGGREGATES = {"last": "last", "min": "min", "prod": "prod"}
MODELS = "say --generator, --verifier or --checker, by the names that this system gives its models"
BATCHES = "the system makes batches by itself: leave it out"

_SAMPLING = {"temperature": same("temperature", "0.8"), "top_p": same("top_p"), "seed": same("seed")}
_SAL = {
    "n": same("n", "4"),
    **_SAMPLING,
    "max_tokens": same("max_step_tokens", "2048", " (of best_of_n: of each step here, of the whole chain there)"),
    "agg_strategy": words("aggregate", AGGREGATES, "last"),
}
_SAL_TREE = {
    **_SAL,
    "beam_width": same("branch", "4", "; `keep` is n / beam_width"),
    "num_iterations": same("max_steps", "40"),
}
_STEPS = {
    "max_steps": same("max_steps"),
    "temperature": same("temperature", "0.8"),
    "step_token": same("step"),
    "tokens_per_step": same("step"),
}
_BUDGET = Word("`n`, and `parallel`: all chains at once", _all_at_once)
_OPENR = {
    "tree_max_depth": same("max_steps"),
    "temperature": same("temperature", "0.0"),
    "top_p": same("top_p"),
    "seed": same("seed"),
    "max_new_tokens": same("max_step_tokens", "256"),
}
_CO = {**_OPENR, "temperature": same("temperature", "0.7"), "max_new_tokens": same("max_step_tokens", "2048")}
_CO["double_line_break"] = Word(
    "1: `step=\\n\\n`; 0: the generator's own", lambda value: {"step": "\n\n"} if value == "1" else {}
)
_TB_AGGREGATES = {"last": "last", "mean": "mean", "min": "min", "product": "prod", "prod": "prod"}
_TB = {
    "temperature": same("temperature", "0.7"),
    "top_p": same("top_p", "0.8"),
    "max_new_tokens": same("max_step_tokens", "500"),
}
_TB_HTTP = {"temperature": same("temperature", "0.7"), "top_p": same("top_p")}
_TB_HTTP_TREE = {
    **_TB_HTTP,
    "tts_max_steps": same("max_steps", "100"),
    "tts_score_aggregation": words("aggregate", _TB_AGGREGATES, "min"),
}

PEERS: dict[str, Peer] = {
    "search-and-learn": Peer(
        "huggingface/search-and-learn 6f81cac, src/sal/config.py and src/sal/search",
        "approach",
        {
            "best_of_n": Method("best_of_n", _SAL),
            "beam_search": Method(
                "beam",
                {
                    **_SAL_TREE,
                    "filter_duplicates": yes_or_no("duplicates", "drop", "keep", "false"),
                    "lookahead": Word("above 0: `policy=lookahead`", _lookahead),
                },
                # Ended chains leave the beam, which is filled up to n again.
                {"finished": "refill"},
            ),
            "dvts": Method("dvts", {**_SAL_TREE, "lookahead": only("0", "dvts doesn't look ahead")}),
        },
        "best_of_n",
        without={
            "sort_completed": "every chain that has ended competes for the answer: leave it out",
            "apply_voting": "say answer=vote or answer=weighted_vote, and extract=boxed",
            "prm_batch_size": BATCHES,
            "search_batch_size": BATCHES,
            "gpu_memory_utilization": "it belongs to an engine, not to a job: leave it out",
            "model_path": MODELS,
            "prm_path": MODELS,
            "system_prompt": "say --system",
        },
    ),
    "its_hub": Peer(
        "its_hub 1.2.0 (PyPI), its_hub/core/algorithms and lms/step_generation.py",
        "algorithm",
        {
            "BeamSearch": Method(
                "beam",
                {"budget": same("n"), "beam_width": same("keep", "", "; `branch` is budget / beam_width"), **_STEPS},
                {"finished": "compete", "duplicates": "keep"},
            ),
            "BestOfN": Method("best_of_n", {"budget": same("n")}),
            "SelfConsistency": Method("self_consistency", {"budget": _BUDGET}, {"stop": "never"}),
            "AdaptiveSelfConsistency": Method(
                "self_consistency",
                {"budget": same("n"), "threshold": Word("`margin`: 2 * threshold - 1", _agreement, "0.75")},
                # It begins with two chains and doubles them; rounds of two ask more often, and need no more chains.
                {"stop": "margin", "parallel": "2"},
            ),
            "BetaSelfConsistency": Method(
                "self_consistency",
                {"budget": _BUDGET, "confidence_threshold": same("confidence", "0.95")},
                {"stop": "beta", "barrier": "none"},
            ),
            "ParticleFiltering": Method(
                "particle",
                {
                    "budget": same("n"),
                    "resampling_method": same("resample", "multinomial"),
                    "final_response_selection": only("argmax", "the answer is the best chain's"),
                    **_STEPS,
                },
                {"ess": "1", "balance": "1"},
            ),
        },
        foreign={
            "EntropicParticleFiltering": "its annealing isn't here: use algorithm=ParticleFiltering",
            "ParticleGibbs": "its iterations aren't here: use algorithm=ParticleFiltering with a larger budget",
        },
        without={
            "stop_token": "a chain ends at the generator's own end mark: leave it out",
            "include_stop_str_in_output": "a step keeps its delimiter, an answer doesn't: leave it out",
            "temperature_switch": "a job has one temperature: leave it out",
            "tool_vote": "answers are texts here: say extract and compare",
            "exclude_args": "answers are texts here: say extract and compare",
            "aggregation_method": "say aggregate=last, min, mean or prod",
        },
    ),
    "openr": Peer(
        "openreasoner/openr 54ae004, reason/evaluation/evaluate.py and reason/guided_search/tree.py",
        "method",
        {
            "beam_search": Method(
                "beam",
                {"num_sequence": same("keep", "1"), "tree_max_width": same("branch", "", ", of each node"), **_OPENR},
                # A chain that has ended makes its beam one narrower; steps of one node that say the same are one.
                {"finished": "retire", "duplicates": "drop"},
            ),
            "best_of_n": Method("best_of_n", {"num_sequence": same("n", "1"), **_OPENR}),
            "cot": Method(
                "best_of_n",
                {name: word for name, word in _OPENR.items() if name != "temperature"},
                {"n": "1", "temperature": "0"},
            ),
        },
        foreign={
            "vanila_mcts": "its num_sequence counts paths from the root to an end, not expansions: use --policy mcts, "
            "with branch for tree_max_width and iterations of your choice",
            "rstar_mcts": "its actions aren't here: use --policy mcts",
        },
        without={
            "top_k": "say top_p",
            "num_worker": BATCHES,
            "LM": MODELS,
            "RM": MODELS,
            "save_dir": "see `ramify results` and `ramify tree`",
            "resume_dir": "a job goes on by itself after a crash: leave it out",
        },
    ),
    "compute-optimal-tts": Peer(
        "RyanLiu112/compute-optimal-tts 0ee2578, src/reason/evaluation/evaluate.py and src/scripts/run.sh",
        "method",
        {
            "beam_search": Method(
                "beam",
                {"num_sequence": same("keep", "1"), "tree_max_width": same("n", "", ": the total, of all nodes"), **_CO},
                {"finished": "retire", "duplicates": "drop"},
            ),
            "best_of_n": Method("best_of_n", {"tree_max_width": same("n"), **_CO}, {"step": "answer"}),
            "cot": Method("best_of_n", _CO, {"n": "1", "step": "answer"}),
        },
        without={
            "top_k": "say top_p",
            "question_parallel_num": "every problem has one tree: submit with another seed for another one",
            "batch_size": BATCHES,
            "num_worker": BATCHES,
            "max_time": "it is the age of a lock file there; say --budget-seconds for a bound",
            "LM": MODELS,
            "RM": MODELS,
        },
    ),
    "rebase": Peer(
        "thu-wyz/inference_scaling 0fe7da9, hype-parameters/rebase.yaml and rebase.py",
        "select_method",
        {
            "softmax": Method(
                "rebase",
                {
                    "width": same("n", "16"),
                    "softmax_temperature": same("balance", "0.2"),
                    "temperature": same("temperature"),
                    "max_step_tokens": same("max_step_tokens", "256"),
                },
                {"max_steps": "25"},
            )
        },
        "softmax",
        foreign={"softmax_with_truncate": "no share of the chains is cut before the softmax: use select_method=softmax"},
        without={
            "truncate_ratio": "no share of the chains is cut before the softmax: leave it out",
            "max_tokens": "say max_steps for a chain, or --budget-tokens-per-problem for a tree",
            "num_threads": BATCHES,
            "policy_model_type": MODELS,
            "reward_model_type": MODELS,
            "store_path": "see `ramify results` and `ramify tree`",
        },
    ),
    "llm-reasoners": Peer(
        "maitrix-org/llm-reasoners f94e5ac, reasoners/algorithm",
        "algorithm",
        {
            "BeamSearch": Method(
                "beam",
                {
                    "beam_size": same("keep", "", "; give `branch` as well: there it is what get_actions returns"),
                    "max_depth": same("max_steps"),
                    "sampling_strategy": only("argmax", "survivors are the best; for a draw use --policy particle"),
                    "reward_aggregator": words("aggregate", {"last": "last", "mean": "mean", "average": "mean"}, "last"),
                    "action_dedup": yes_or_no("duplicates", "drop", "keep", "false"),
                    "early_terminate": only("true", "an ended chain is never continued"),
                },
                {"finished": "refill"},
            ),
            "MCTS": Method(
                "mcts",
                {
                    "n_iters": same("iterations", "10", "; give `branch` as well: there it is what get_actions returns"),
                    "depth_limit": same("max_steps", "5"),
                    "w_exp": same("exploration", "1", " (of PUCT here, of UCT there)"),
                },
            ),
        },
        foreign={
            "DFS": "use --policy best_first",
            "GreedySearch": "use --policy beam keep=1",
            "RandomShooting": "use --policy best_of_n",
        },
        without={
            "temperature": "it is that of the stochastic choice of survivors there; sampling belongs to the model: leave it out",
            "temperature_decay": "survivors are the best: leave it out",
            "replace": "survivors are the best: leave it out",
            "reject_sample": "say threshold, a share of the best score",
            "reject_min_reward": "say threshold, a share of the best score",
            "unbiased": "survivors are the best: leave it out",
            "return_beam": "see `ramify tree` for all chains",
            "cum_reward": "say aggregate",
            "calc_q": "a node's value is the mean of those below it: leave it out",
            "simulate_strategy": "chains are judged by the verifier, not rolled out: leave it out",
            "output_strategy": "say answer",
        },
    ),
    "treequest": Peer(
        "SakanaAI/treequest e6865b7 (0.3.3), src/treequest/algos",
        "algorithm",
        {
            "StandardMCTS": Method(
                "mcts",
                {
                    "samples_per_action": same("branch", "2"),
                    "exploration_weight": same("exploration", "1.4142", " (of PUCT here, of UCT with priors there)"),
                    "batch_size": same("parallel", "", " (of nodes that are expanded here, of samples there)"),
                },
            ),
            "ABMCTSA": Method("ab_mcts", {"dist_type": same("belief", "gaussian"), "batch_size": same("parallel")}),
            "TreeOfThoughtsBFSAlgo": Method(
                "beam",
                {"breadth_limit": same("keep", "3"), "size_limit": same("branch", "5", ", of each node")},
                {"duplicates": "keep"},
            ),
            "BestFirstSearchAlgo": Method(
                "best_first", {"num_samples": same("branch", "2"), "batch_size": same("parallel")}, {"duplicates": "keep"}
            ),
        },
        foreign={
            "ABMCTSM": "its mixed model isn't here: use algorithm=ABMCTSA",
            "MultiArmedBanditUCBAlgo": "a job has one generator, so there is nothing to choose from: use --policy best_of_n",
        },
        without={
            "model_selection_strategy": "a job has one generator: leave it out",
            "reward_average_priors": "the priors are fixed: leave it out",
            "prior_config": "the priors are fixed; say dist_type",
            "enable_pruning": "it belongs to ABMCTSM: leave it out",
            "max_process_workers": BATCHES,
        },
    ),
    "thinkbooster": Peer(
        "IINemo/thinkbooster 51ca08e, llm_tts/strategies and config",
        "type",
        {
            "beam_search": Method(
                "beam",
                {
                    "beam_size": same("keep", "5"),
                    "candidates_per_beam": same("branch", "3"),
                    "max_steps": same("max_steps", "10"),
                    "aggregation": words("aggregate", _TB_AGGREGATES, "mean"),
                    "max_step_tokens": same("max_step_tokens", "1024"),
                    "temperature": same("temperature", "0.7"),
                    "top_p": same("top_p", "0.8"),
                },
                {"finished": "refill", "duplicates": "keep"},
            ),
            "offline_best_of_n": Method(
                "best_of_n",
                {"num_trajectories": same("n", "8"), "score_aggregation": words("aggregate", _TB_AGGREGATES, "min"), **_TB},
            ),
            "online_best_of_n": Method(
                "beam",
                {
                    "candidates_per_step": same("branch", "8"),
                    "max_steps": same("max_steps"),
                    "max_step_tokens": same("max_step_tokens", "1024"),
                    "temperature": same("temperature", "0.7"),
                    "top_p": same("top_p", "0.8"),
                },
                {"keep": "1"},
            ),
            "self_consistency": Method(
                "self_consistency",
                {"num_paths": Word("`n`, and `parallel`: all chains at once", _all_at_once, "8"), **_TB},
                {"stop": "never"},
            ),
        },
        foreign={
            "adaptive": "the number of candidates doesn't adapt: use type=online_best_of_n",
            "deepconf": "chains aren't judged by their tokens' probabilities: use type=self_consistency",
            "extended_thinking": "a chain that has ended isn't made to go on: leave it out",
            "baseline": "use --policy best_of_n n=1",
        },
        without={
            "scoring_window": "all steps of a chain count, by aggregate",
            "top_k": "say top_p",
            "min_step_tokens": "a step ends where its delimiter stands: leave it out",
            "batch_generation": BATCHES,
            "prompt_buffer": "leave it out",
        },
    ),
    "thinkbooster-http": Peer(
        "IINemo/thinkbooster 51ca08e, docs/service/SERVICE_API_GUIDE.md",
        "tts_strategy",
        {
            "self_consistency": Method(
                "self_consistency",
                {"num_paths": Word("`n`, and `parallel`: all chains at once", _all_at_once, "5"), **_TB_HTTP},
                {"stop": "never"},
            ),
            "offline_bon": Method("best_of_n", {"tts_num_trajectories": same("n", "8"), **_TB_HTTP_TREE}),
            "online_bon": Method("beam", {"tts_candidates_per_step": same("branch", "4"), **_TB_HTTP_TREE}, {"keep": "1"}),
            "beam_search": Method(
                "beam",
                {"tts_beam_size": same("keep", "4"), "tts_candidates_per_step": same("branch", "4"), **_TB_HTTP_TREE},
                {"finished": "refill", "duplicates": "keep"},
            ),
        },
        "self_consistency",
        without={
            "tts_scorer": MODELS,
            "tts_window_size": "all steps of a chain count, by aggregate",
            "max_tokens": "say max_steps and max_step_tokens",
            "model": MODELS,
            "provider": MODELS,
        },
    ),
}
