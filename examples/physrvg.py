"""A reward in a loop of your own: futures of a context, tracked, judged without a true future, and made likelier."""

import torch

from upright.maths.policy import advantages
from upright.methods.physrvg import cycle_loss
from upright.video.model import Trajectory, flow_matching_loss, rollout
from upright.video.render import draw
from upright.video.rewards import load_reward
from upright.video.scenes import simulate
from upright.video.tracks import meta_of

torch.set_num_threads(1)
ghosts, contexts = simulate("collision", 400, 0, ghost=0.5), simulate("collision", 8, 1)
policy, newton = Trajectory("small"), load_reward("newton")  # of your own: a model with velocity(x, t, condition)
latents, radius = (torch.from_numpy(x).float() for x in (ghosts.position, ghosts.radius))
optimiser, generator = torch.optim.AdamW(policy.parameters(), 1e-3), torch.Generator().manual_seed(0)
for _ in range(60):  # a start that saw wrong mechanics, and has hardly learnt
    index = torch.randint(0, len(latents), (64,), generator=generator)
    loss = flow_matching_loss(policy, policy.encode(latents[index]), radius[index], generator).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

groups, size = len(contexts), 6
each = torch.arange(groups).repeat_interleave(size)
meta = meta_of(contexts)[each]
x0 = policy.encode(torch.from_numpy(contexts.position).float())[each]
optimiser = torch.optim.AdamW(policy.parameters(), 2e-4)
for turn in range(3):
    noise = torch.randn(groups, *policy.shape, generator=generator)[each]  # shared in a group
    how = {"steps": 8, "eta": 0.7}
    x, taken = rollout(policy, x0, meta.radius, noise, window=(0, 1), generator=generator, **how)
    clips = draw(policy.positions(x), meta.radius, meta.colour, meta.backdrop)
    cost = newton.score(clips, None, meta).value
    advantage, _ = advantages(-cost.view(groups, size))
    loss, ratio = cycle_loss(policy, taken, meta.radius, advantage.flatten(), **how)
    optimiser.zero_grad()
    loss.mean().backward()
    optimiser.step()
    print(f"round {turn + 1}: mechanics broken by {float(cost.mean()):.2f} tolerances, ratio {float(ratio.mean()):.3f}")
