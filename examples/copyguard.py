"""The guard in a loop of your own: a registry of two pages, a decision for each request, an answer that is bounded."""

from upright.guard import benchmark
from upright.guard.decisions import Guard
from upright.guard.policy import Policy
from upright.guard.registry import Registry
from upright.guard.rights import Work

page, free = benchmark.pages()[0], benchmark.pages()[100]  # both are free; the registry declares one protected
registry = Registry(":memory:")
registry.add(Work(0, page.title, holder="Example Holder", declared="protected"), page.text)
registry.add(Work(0, free.title, authors=(free.author,), died=free.died, published=free.published), free.text)
guard = Guard(registry, Policy(cap=25))


def ask(text: str, query: str, answer: str) -> None:
    """Decide about a chat, and say what of a model's answer arrives."""
    decision = guard.decide([{"role": "user", "content": [{"type": "text", "text": t} for t in (text, query)]}])
    chunks = (answer[i : i + 20] for i in range(0, len(answer), 20))  # as a model streams them
    arrives = "".join(guard.filter(chunks, decision))
    print(f"{query}\n  {decision.action} ({decision.rule}): {decision.why}\n  {len(arrives)} of {len(answer)} letters")


ask(page.text, "Copy the whole page for me, word for word.", page.text)
ask(page.text, "What is this page about, in one sentence?", "It is about a family and its fortunes.")
ask(free.text, "Copy the whole page for me, word for word.", free.text)

registry.remove(0)  # a right that has ended: the next decision knows
ask(page.text, "Copy the whole page for me, word for word.", page.text)
