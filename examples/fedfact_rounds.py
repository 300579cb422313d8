"""FedFACT in rounds: three sites find adjustments under one limit, and no row, label or probability leaves a site."""

import numpy as np

from upright.classification.exchange import FedFACTPost, Scores
from upright.federation.rounds import drive
from upright.maths.parity.constraints import Constraint
from upright.maths.parity.site import adjusted

rng, sites = np.random.default_rng(0), {}
for name in ("north", "south", "west"):
    group = rng.integers(0, 2, 2000)
    yes = 1 / (1 + np.exp(-rng.normal(size=2000) - 0.8 * group))  # a model that favours group 1
    sites[name] = Scores(name, np.column_stack([1 - yes, yes]), (np.eye(2)[group],))

algorithm = FedFACTPost([Constraint("demographic_parity", global_tol=0.02, local_tol=0.05)], [2], 2)
# in one process; on machines of their own: `strategy` and `client_app` of upright.federation.flower
state, private = drive(algorithm, sites)
sent = sum(v.nbytes for v in algorithm.template(state, "north").values())
for name, table in algorithm.tables(private).items():
    member = sites[name].members
    decided = adjusted(sites[name].p, member, ["demographic_parity"], table).argmax(1)
    rates = member[0].T @ decided / member[0].sum(0)
    print(f"{name}: {rates[0]:.3f} and {rates[1]:.3f} decided yes; {state['round']} rounds of {sent} bytes up")
