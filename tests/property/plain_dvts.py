"""DVTS for one tree and for a reader."""

from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.policies.dvts import Dvts
from tests.property.forests import Node, Tree
from tests.property.growth import Wanted, open_nodes, place_among_siblings
from tests.property.reference import best_first, has_ended


def plain_dvts(tree: Tree, forest: Forest, dvts: Dvts) -> Wanted:
    wanted = Wanted()
    subtrees: dict[int, list[Node]] = {}
    for node in open_nodes(tree):
        number = place_among_siblings(tree, node.chain()[0]) // dvts.branch if node.parent else 0
        subtrees.setdefault(number, []).append(node)
    grows = []
    for nodes in subtrees.values():
        best, *others = best_first(nodes, dvts.aggregate)
        wanted.prune |= {node.row for node in others}
        if has_ended(best, dvts.max_steps):
            wanted.retire.add(best.row)
        else:
            grows.append(best)
    wanted.expand = [(node.row, dvts.branch if node.parent else dvts.n) for node in best_first(grows, dvts.aggregate)]
    wanted.finish = not grows
    return wanted
